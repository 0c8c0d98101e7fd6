"""One request at one instance: acquired from the router, finished once.

Touches the instance's counts through the owner, and pauses reading of the upstream connection.  The client
writes the request, the upstream connection delivers the response.  Invariant: every acquire() is followed by
exactly one finish(), which returns the instance's credit, whatever the outcome.

    FREE -> OPENING -> ASKED -> HEARD -> FREE       OPENING: a connection is being opened
         -> ASKED                                   HEARD: bytes of the response have arrived

A client has one exchange, which is reused for each of its requests.
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

# Outcomes of an exchange.
ANSWERED: Final = 0  # a complete response
BROKEN: Final = 1  # an incomplete or invalid response
LOST: Final = 2  # the connection closed before the first byte of a response
REFUSED: Final = 3  # the instance refuses connections
UNREACHABLE: Final = 4  # no connection within connect_timeout
EXHAUSTED: Final = 5  # this process lacks a descriptor or memory for a connection
CANCELLED: Final = 6  # the client has disconnected
LATE: Final = 7  # the instance exceeded predict_timeout


class Carrier(ConnectionProtocol):
    """The interface of an upstream connection for an exchange."""

    __slots__ = ("exchange", "transport")

    def __init__(self) -> None:
        self.transport: Transport = None  # type: ignore[assignment]
        self.exchange: Exchange | None = None

    def abort(self) -> None:
        """Close the connection at once; it is not reused."""
        raise NotImplementedError

    def fail(self, why: str) -> None:
        """End the exchange as BROKEN."""
        raise NotImplementedError


class Owner:
    """The interface of the router for an exchange."""

    def released(
        self, exchange: Exchange, instance: Instance, outcome: int, now_ns: int, spent_us: int, status: int
    ) -> None:
        """The exchange is free again: count its outcome; retry or refuse the request if it failed."""
        raise NotImplementedError

    def freed(self, now_ns: int) -> None:
        """An instance has a free credit while its response is still being relayed."""
        raise NotImplementedError


class Exchange:
    """`asked_at_ns`: when the instance could begin to work. `heard_at_ns`: when the response head arrived
    while its body is still being relayed, else 0; relaying time is not counted as the instance's.
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
        self.heard_s = 0.0  # when the instance last sent bytes, on the loop's clock
        self.whole = True  # the whole request has been written
        self.held = 0  # reasons of downstream.py for which the response is not read
        self.retried_ns = 0  # `started_ns` of the last request that was given a second attempt
        self._held_at_ns = 0
        self._apart = False  # see Instance.set_apart

    def acquire(self, instance: Instance) -> None:
        """Bind the exchange to `instance`. Raises RuntimeError if it is already bound."""
        if self.instance is not None:
            raise RuntimeError("an exchange is acquired twice")
        self.instance, self.state = instance, OPENING
        self.asked_at_ns = self.heard_at_ns = 0
        self.whole = True

    def ask(self, carrier: Carrier, now_ns: int) -> None:
        """`carrier` writes the request next."""
        self.carrier, self.opening, self.state = carrier, None, ASKED
        self.asked_at_ns = now_ns

    # ------------------------------------------------------------------ the request

    def given(self, whole: bool) -> None:
        """A piece of a large body was written. `whole`: it was the last, so the instance can begin."""
        self.whole = whole
        if not self.heard_at_ns:
            self.asked_at_ns = monotonic_ns()
        if whole and self.state == ASKED:
            self._rejoin()

    def set_apart(self) -> None:
        """The exchange waits for the client or for bandwidth: its credit may serve another request."""
        if not self._apart and self.instance is not None:
            self._apart = self.instance.set_apart()

    def _rejoin(self) -> None:
        if self._apart and self.instance is not None:
            self._apart = False
            self.instance.rejoin()

    def exclude_time(self, spell_ns: int) -> None:
        """Exclude `spell_ns`, in which client or bandwidth blocked the instance, from its latency."""
        if not self.heard_at_ns:
            self.asked_at_ns += spell_ns

    # ------------------------------------------------------------------ the response

    def heard(self) -> None:
        """Bytes of the response have arrived."""
        self.state = HEARD

    def begun(self) -> None:
        """The response head has arrived; the body's duration depends on client and bandwidth."""
        if not self._apart:
            self.heard_at_ns = monotonic_ns()
            self.set_apart()
            self._owner.freed(self.heard_at_ns)

    def hold(self, reason: int) -> None:
        """Pause reading the response for `reason`. No effect without a carrier."""
        carrier = self.carrier
        if carrier is None:
            return
        if not self.held and not carrier.transport.is_closing():
            carrier.transport.pause_reading()
            self._held_at_ns = monotonic_ns()
        self.held |= reason

    def go_on(self, reason: int) -> None:
        """Clear `reason`; reading resumes when no reason is left."""
        if self.held == reason:
            self._read_on()
        self.held &= ~reason

    def _read_on(self) -> None:
        carrier = self.carrier
        if carrier is not None and not carrier.transport.is_closing():
            carrier.transport.resume_reading()
            self.exclude_time(monotonic_ns() - self._held_at_ns)
            self.heard_s = self._clock.now_s

    def detach(self) -> None:
        """Release the carrier and resume its reading, because it will serve other exchanges."""
        if self.held:
            self._read_on()
            self.held = 0
        self.carrier = None

    def spent_us(self, now_ns: int) -> int:
        """The instance's processing time in microseconds."""
        return ((self.heard_at_ns or now_ns) - self.asked_at_ns) // 1000

    # ------------------------------------------------------------------ the end

    def finish(self, outcome: int, now_ns: int, status: int = 0) -> None:
        """Return the instance's credit and report `outcome`. Raises RuntimeError if already finished."""
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
        """Abort the request at the instance: the client has disconnected, or a deadline has passed."""
        if self.opening is not None:
            self.opening.cancel()
        carrier = self.carrier
        if carrier is not None:
            carrier.exchange = None
            carrier.abort()
        self.finish(outcome, monotonic_ns())
