"""A large request body, streamed: a piece is read when the previous one has been passed on.

Touches the client's connection, the exchange's carrier and the limiter.  A slow instance or an exhausted
bandwidth therefore slows the client down, and memory holds one piece per upload.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from twofold.loadbalancer.proxy.downstream import ASKED, BANDWIDTH, FLOW, INSTANCE, Downstream

if TYPE_CHECKING:
    from twofold.loadbalancer.bandwidth.fair_queue import Ticket
    from twofold.loadbalancer.proxy.exchange import Exchange
    from twofold.loadbalancer.proxy.services import Services

BODY_SECONDS: Final = 30.0  # for every body, plus its length / MIN_BODY_RATE
MIN_BODY_RATE: Final = 8000  # bytes per second


def due_s(now_s: float, length: int) -> float:
    """The deadline in seconds for a body of `length` bytes: now + BODY_SECONDS + length / MIN_BODY_RATE."""
    return now_s + BODY_SECONDS + length / MIN_BODY_RATE


class Upload:
    """`ticket`: the piece that waits for bandwidth, or None."""

    __slots__ = ("_client", "_exchange", "_services", "ticket")

    def __init__(self, client: Downstream, exchange: Exchange, services: Services) -> None:
        self._client = client
        self._exchange = exchange
        self._services = services
        self.ticket: Ticket | None = None

    def begin(self, head: bytes, length: int) -> None:
        """Start a body of `length` bytes; `head` is sent to the instance with its first piece."""
        client = self._client
        client.state, client.left, client.message = FLOW, length, head
        self._services.limiter.announced += length

    def end(self) -> None:
        """Stop: the rest of the body is not passed on."""
        self._services.limiter.announced -= self._client.left
        self._client.left = 0
        if self.ticket is not None:
            self._services.limiter.cancel(self.ticket)
            self.ticket = None

    @property
    def piece_size(self) -> int:
        """Bytes of the body that may pass in one turn: at most the limiter's quantum."""
        return min(self._client.left, self._services.limiter.quantum)

    def flow(self) -> None:
        """Pass on the received part of the body in pieces."""
        client = self._client
        partial_ = client.partial
        while partial_ and client.left and client.state == FLOW and not client.paused:
            size = self.piece_size
            piece = bytes(partial_[:size])
            del partial_[:size]
            self.take(piece)

    def take(self, piece: bytes) -> None:
        """Pay for a received piece and pass it on, or pause the client until it is paid."""
        client, limiter, size = self._client, self._services.limiter, len(piece)
        client.left -= size
        limiter.announced -= size
        client.bytes_in += size
        client.since_s = self._services.state.now_s
        if limiter.pay(size):
            self._pass_on(piece)
        else:
            client.pause(BANDWIDTH)
            self.ticket = limiter.wait(size, partial(self._paid, piece))

    def _paid(self, piece: bytes) -> None:
        self.ticket = None
        self.extend_deadline()
        self._pass_on(piece)
        self._client.resume(BANDWIDTH)

    def extend_deadline(self) -> None:
        """Extend the body's deadline by the time since the last piece, in which reading was paused."""
        client, now_s = self._client, self._services.state.now_s
        client.due_s += now_s - client.since_s
        client.since_s = now_s

    def _pass_on(self, piece: bytes) -> None:
        carrier = self._exchange.carrier
        if carrier is None:  # no instance is selected yet: keep one piece, leave the rest in the kernel
            self._client.message += piece
            self._client.pause(INSTANCE)
        elif not carrier.transport.is_closing():
            carrier.transport.write(piece)
            self.passed()

    def passed(self) -> None:
        """All received bytes have been written to the instance."""
        client = self._client
        whole = not client.left and self.ticket is None
        if whole and client.state == FLOW:
            client.state = ASKED
        self._exchange.given(whole)
