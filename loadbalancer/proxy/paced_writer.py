"""Writes to one client at the rate that the bandwidth limit allows.

Touches the client's transport and the proxy's limiter.  Data that the limiter does not admit at once is
queued here in order, in pieces of one quantum; the first piece is a ticket of the fair queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twofold.loadbalancer.bandwidth.fair_queue import Ticket
    from twofold.loadbalancer.bandwidth.limiter import BandwidthLimiter
    from twofold.loadbalancer.proxy.downstream import Downstream


class PacedWriter:
    """`urgent`: the whole response is at most one quantum, and has priority in the fair queue.

    `pieces`: the queued data, in order.
    """

    __slots__ = ("_behind", "_client", "_drained", "_limiter", "bytes_out", "pieces", "ticket", "urgent")

    def __init__(self, client: Downstream, limiter: BandwidthLimiter, drained: Callable[[], None]) -> None:
        self._client = client
        self._limiter = limiter
        self._drained: Callable[[], None] | None = drained  # called when the last piece is written
        self.pieces: deque[bytes] = deque()
        self.ticket: Ticket | None = None  # of the first piece
        self.bytes_out = 0
        self.urgent = False
        self._behind = 0  # bytes of the pieces after the first one

    def write(self, data: bytes) -> bool:
        """True if `data` was written; otherwise it is queued, and drained() is called later."""
        if self.pieces:
            self.pieces.append(data)
            self._count(len(data))
            return False
        if not self._limiter.pay(len(data)):
            self.wait(data)
            return False
        self.bytes_out += len(data)
        self._client.transport.write(data)
        return True

    def wait(self, data: bytes) -> None:
        """Queue `data` in pieces of one quantum; nothing may be queued before."""
        size = self._limiter.quantum
        self.pieces.extend(data[start : start + size] for start in range(0, len(data), size))
        self._count(len(data))
        self._next()

    def hold(self, data: bytes, price: int) -> None:
        """Queue `data` until `price` bytes are paid for: a refusal pays for its request as well."""
        self.pieces.append(data)
        self.ticket = self._limiter.wait(price, self._paid)

    def free(self, data: bytes) -> None:
        """Write `data` without paying for it."""
        self.pieces.append(data)
        self._paid()

    def drop(self) -> None:
        """Discard the queued pieces."""
        if self.ticket is not None:
            self._limiter.cancel(self.ticket)
            self.ticket = None
        self._count(-self._behind)
        self.pieces.clear()

    def close(self) -> None:
        """Discard the queued pieces, and break the reference cycle with the response."""
        self.drop()
        self._drained = None

    def _next(self) -> None:
        size = len(self.pieces[0])
        self._count(-size)
        self.ticket = self._limiter.wait(size, self._paid, urgent=self.urgent, answer=True)

    def _count(self, nbytes: int) -> None:
        self._behind += nbytes
        self._limiter.held += nbytes

    def _paid(self) -> None:
        """The first piece is paid for."""
        self.ticket = None
        data = self.pieces.popleft()
        self.bytes_out += len(data)
        self._client.transport.write(data)
        if self.pieces:
            self._next()
        elif self._drained is not None:
            self._drained()
