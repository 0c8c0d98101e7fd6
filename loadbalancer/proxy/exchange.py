"""One request at one instance: acquired from the router, finished once.

Touches the instance's counts through its owner, and pauses the instance's connection for reading.  The
client pushes the request into it, the upstream connection pushes the response; both learn of its end by
`finish()`, which gives the instance's credit back exactly once, however the request ended.

    FREE -> OPENING -> ASKED -> HEARD -> FREE       OPENING: a connection is being made
         -> ASKED                                   HEARD: bytes of the response have arrived

A client has one exchange, which carries its requests one after the other.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from twofold.reactor.transport import ConnectionProtocol

if TYPE_CHECKING:
    from twofold.loadbalancer.balancing.instance import Instance
    from twofold.loadbalancer.proxy.downstream import Downstream
    from twofold.loadbalancer.proxy.services import ProxyState
    from twofold.reactor.transport import Transport

FREE: Final = 0
OPENING: Final = 1
ASKED: Final = 2
HEARD: Final = 3

MOVES: Final = {
    FREE: (OPENING, ASKED),
    OPENING: (ASKED, FREE),
    ASKED: (HEARD, FREE),
    HEARD: (FREE,),
}

# How an exchange ends.
ANSWERED: Final = 0  # with a whole response
BROKEN: Final = 1  # within a response, or with something that is no response
LOST: Final = 2  # the connection closed before a byte of a response
REFUSED: Final = 3  # the instance refuses connections
UNREACHABLE: Final = 4  # no connection within connect_timeout
EXHAUSTED: Final = 5  # this process lacks a descriptor or memory for a connection
CANCELLED: Final = 6  # the client has left
LATE: Final = 7  # predict_timeout passed, and the instance is to blame


class Carrier(ConnectionProtocol):
    """The upstream connection, as far as an exchange knows it."""

    __slots__ = ("exchange", "transport")

    def __init__(self) -> None:
        self.transport: Transport = None  # type: ignore[assignment]
        self.exchange: Exchange | None = None

    def abort(self) -> None:
        """Close it at once; it is never used again."""
        raise NotImplementedError

    def fail(self, why: str) -> None:
        """End its exchange as BROKEN."""
        raise NotImplementedError


class Owner:
    """The router: where exchanges come from and go back to."""

    def released(
        self, exchange: Exchange, instance: Instance, outcome: int, now_ns: int, spent_us: int, status: int
    ) -> None:
        """The exchange is free again. Counts its outcome, and decides what the client gets instead."""
        raise NotImplementedError

    def freed(self, now_ns: int) -> None:
        """An instance has room again, though its response is still being relayed."""
        raise NotImplementedError


class Exchange:
    """`asked_at_ns`: when the instance could begin to work. `heard_at_ns`: when the head of a response came
    whose body is still being relayed, else 0; the rest of the time is the client's or the bandwidth's.
    """

    __slots__ = (
        "_apart", "_clock", "_held_at_ns", "_owner", "asked_at_ns", "carrier", "downstream", "heard_at_ns",
        "heard_s", "held", "instance", "opening", "retried_ns", "state", "whole",
    )  # fmt: skip

    def __init__(self, downstream: Downstream, owner: Owner, clock: ProxyState) -> None:
        self.downstream = downstream
        self._owner = owner
        self._clock = clock
        self.state = FREE
        self.instance: Instance | None = None
        self.carrier: Carrier | None = None
        self.opening: asyncio.Task[None] | None = None
        self.asked_at_ns = 0
        self.heard_at_ns = 0
        self.heard_s = 0.0  # when the instance last sent, on the loop's clock
        self.whole = True  # the request has been written to its end
        self.held = 0  # why the response is not being read: reasons of downstream.py
        self.retried_ns = 0  # `started_ns` of the last request that was given a second attempt
        self._held_at_ns = 0
        self._apart = False  # see Instance.set_apart

    def acquire(self, instance: Instance) -> None:
        """Raises RuntimeError if it is not free."""
        if self.instance is not None:
            raise RuntimeError("an exchange is acquired twice")
        self.instance, self.state = instance, OPENING
        self.asked_at_ns = self.heard_at_ns = 0
        self.whole = True

    def ask(self, carrier: Carrier, now_ns: int) -> None:
        """`carrier` is about to write the request."""
        self.carrier, self.opening, self.state = carrier, None, ASKED
        self.asked_at_ns = now_ns

    # ------------------------------------------------------------------ the request

    def given(self, whole: bool) -> None:
        """A piece of a large body is on its way; with the last one, work can begin."""
        self.whole = whole
        if not self.heard_at_ns:
            self.asked_at_ns = monotonic_ns()
        if whole and self.state == ASKED:
            self._rejoin()

    def set_apart(self) -> None:
        """Its client or the bandwidth has the next move: the instance may be given another request."""
        if not self._apart and self.instance is not None:
            self._apart = self.instance.set_apart()

    def _rejoin(self) -> None:
        if self._apart and self.instance is not None:
            self._apart = False
            self.instance.rejoin()

    def excuse(self, spell_ns: int) -> None:
        """A time in which the client or the bandwidth kept the instance from working or answering."""
        if not self.heard_at_ns:
            self.asked_at_ns += spell_ns

    # ------------------------------------------------------------------ the response

    def heard(self) -> None:
        """Bytes of the response have arrived."""
        self.state = HEARD

    def begun(self) -> None:
        """The head of a response is here; its body takes as long as client and bandwidth take."""
        if not self._apart:
            self.heard_at_ns = monotonic_ns()
            self.set_apart()
            self._owner.freed(self.heard_at_ns)

    def hold(self, reason: int) -> None:
        """Stop reading the response. Without a carrier there is nothing to stop."""
        carrier = self.carrier
        if carrier is None:
            return
        if not self.held and not carrier.transport.is_closing():
            carrier.transport.pause_reading()
            self._held_at_ns = monotonic_ns()
        self.held |= reason

    def go_on(self, reason: int) -> None:
        """`reason` holds no longer."""
        if self.held == reason:
            self._read_on()
        self.held &= ~reason

    def _read_on(self) -> None:
        carrier = self.carrier
        if carrier is not None and not carrier.transport.is_closing():
            carrier.transport.resume_reading()
            self.excuse(monotonic_ns() - self._held_at_ns)
            self.heard_s = self._clock.now_s

    def detach(self) -> None:
        """Let go of the carrier, which reads on: it will carry other responses."""
        if self.held:
            self._read_on()
            self.held = 0
        self.carrier = None

    def spent_us(self, now_ns: int) -> int:
        """Microseconds that the instance needed."""
        return ((self.heard_at_ns or now_ns) - self.asked_at_ns) // 1000

    # ------------------------------------------------------------------ the end

    def finish(self, outcome: int, now_ns: int, status: int = 0) -> None:
        """Give the instance's credit back. Raises RuntimeError if that has happened."""
        instance = self.instance
        if instance is None:
            raise RuntimeError("an exchange is finished twice")
        if self._apart:
            self._rejoin()
        if self.carrier is not None:
            self.detach()
        spent_us = self.spent_us(now_ns)
        self.instance = self.opening = None
        self.state = FREE
        self._owner.released(self, instance, outcome, now_ns, spent_us, status)

    def cancel(self, outcome: int) -> None:
        """The client has left, or its time is up: the instance need not go on."""
        if self.opening is not None:
            self.opening.cancel()
        carrier = self.carrier
        if carrier is not None:
            carrier.exchange = None
            carrier.abort()
        self.finish(outcome, monotonic_ns())
