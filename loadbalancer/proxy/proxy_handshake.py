"""The PROXY protocol line that a trusted proxy sends before the client's first byte.

Touches its transport, which is passed to a `Client` when the line has been read.  TLS begins directly after
the line, so exactly the bytes of the line are read and the rest is left to OpenSSL.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from twofold.loadbalancer import shared_memory
from twofold.wire import proxy_protocol

if TYPE_CHECKING:
    from twofold.loadbalancer.proxy.client import Client
    from twofold.loadbalancer.proxy.services import Services

PATIENCE_S = 5.0


class ProxyHandshake(asyncio.BufferedProtocol):
    def __init__(
        self, services: Services, make_client: Callable[[], Client], context: ssl.SSLContext | None
    ) -> None:
        self._services = services
        self._make_client = make_client
        self._context = context
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self._data = b""
        self._buffer = bytearray(proxy_protocol.MAX_SIZE)
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        if self._services.admission.authorization.expects_line(self._peer()):
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self.transport.abort)
        else:
            self._start_client(self._peer())

    def get_buffer(self, sizehint: int) -> memoryview:
        wanted = min(proxy_protocol.needed(self._data), proxy_protocol.MAX_SIZE)
        return memoryview(self._buffer)[: max(1, wanted)]

    def buffer_updated(self, nbytes: int) -> None:
        self._data += self._buffer[:nbytes]
        try:
            line = proxy_protocol.parse(self._data)
        except proxy_protocol.BadProxyLine:
            self._services.cells[shared_memory.UNAUTHORISED] += 1
            self.transport.abort()
            return
        if line is not None:
            self._start_client(line.endpoints.source if line.endpoints else self._peer())

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()

    def _peer(self) -> str:
        peer = self.transport.get_extra_info("peername")
        return peer[0] if isinstance(peer, tuple) else ""

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _start_client(self, address: str) -> None:
        """Pass the transport to a new client."""
        self._cancel_timer()
        client = self._make_client()
        client.peer = address
        if self._context is not None:
            self.transport.pause_reading()
            self._task = asyncio.get_running_loop().create_task(self._secure(client, self._context))
            return
        self.transport.set_protocol(cast("asyncio.Protocol", client))
        client.connection_made(self.transport)

    async def _secure(self, client: Client, context: ssl.SSLContext) -> None:
        try:
            made = await asyncio.get_running_loop().start_tls(
                self.transport, cast("asyncio.Protocol", client), context,
                server_side=True, ssl_handshake_timeout=self._services.config.timeouts.head_timeout,
            )  # fmt: skip
        except (OSError, ssl.SSLError):  # an invalid handshake, or a rejected client certificate
            made = None
        if made is None:  # the handshake failed, or the client disconnected during it
            self.transport.abort()
        else:
            client.connection_made(made)
