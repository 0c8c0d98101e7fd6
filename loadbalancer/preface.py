"""What a trusted proxy says of the client before the client's first byte: the PROXY protocol.

Touches its transport, which it hands to a `Client` as soon as the line is read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from loadbalancer import memory, proxyline
from loadbalancer.client import RECEIVE_VIEW, Client

if TYPE_CHECKING:
    from loadbalancer.proxy import Proxy

PATIENCE = 5.0  # seconds


class Preface(asyncio.Protocol):
    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        if self.proxy.admission.guard.expects_line(address):
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self.transport.abort)
        else:
            self._hand_on(address)

    def data_received(self, data: bytes) -> None:
        self._data += data
        try:
            line = proxyline.parse(self._data)
        except proxyline.BadProxyLine:
            self.proxy.cells[memory.UNAUTHORISED] += 1
            self.transport.abort()
            return
        if line is not None:
            self._data = self._data[line.size :]
            peer = self.transport.get_extra_info("peername")
            self._hand_on(line.endpoints.source if line.endpoints else peer[0])

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _hand_on(self, address: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        client = Client(self.proxy)
        client.peer = address
        # Another kind of protocol reads in another way: uvloop looks at it when reading begins.
        self.transport.pause_reading()
        self.transport.set_protocol(client)
        client.connection_made(self.transport)
        if self.transport.is_closing():
            return
        self.transport.resume_reading()
        for start in range(0, len(self._data), len(RECEIVE_VIEW)):
            piece = self._data[start : start + len(RECEIVE_VIEW)]
            RECEIVE_VIEW[: len(piece)] = piece
            client.buffer_updated(len(piece))
