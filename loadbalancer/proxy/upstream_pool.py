"""Sends exchanges to one instance, over an idle connection or a new one.

Touches the connections to the instance.  Credits and ejection are computed in `balancing`.
"""

from __future__ import annotations

import asyncio
import errno
from time import monotonic_ns
from typing import TYPE_CHECKING

from twofold.loadbalancer.proxy.exchange import EXHAUSTED, REFUSED, UNREACHABLE
from twofold.loadbalancer.proxy.upstream import UpstreamConnection, UpstreamConnections
from twofold.net.connect import connect
from twofold.reactor.transport import Transport

if TYPE_CHECKING:
    from twofold.loadbalancer.balancing.instance import Instance
    from twofold.loadbalancer.proxy.exchange import Exchange
    from twofold.loadbalancer.proxy.services import Services
    from twofold.reactor.reactor import Reactor

# Local resource exhaustion, not the instance's fault: the attempt is repeated ATTEMPTS times.
LOCAL_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
ATTEMPTS = 20
PAUSE_S = 0.02


class UpstreamPool:
    def __init__(self, services: Services, reactor: Reactor, instance: Instance) -> None:
        self.instance = instance
        self.connections = UpstreamConnections(services, instance.name)
        self._services = services
        self._reactor = reactor
        self._timeout_s = services.config.timeouts.connect_timeout

    def ask(self, exchange: Exchange, now_ns: int) -> None:
        """Send the exchange, which is bound to this instance, on a connection."""
        connection = self.connections.take()
        if connection is not None:
            connection.ask(exchange, now_ns)
        else:
            exchange.opening = asyncio.get_running_loop().create_task(self._open(exchange))

    async def _open(self, exchange: Exchange) -> None:
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connect()
        except (OSError, TimeoutError) as error:
            if exchange.opening is task:
                exchange.finish(self._outcome(error), monotonic_ns())
            return
        if exchange.opening is task:
            connection.ask(exchange, monotonic_ns())
        else:  # the exchange was cancelled after the connection was made
            self.connections.give_back(connection)

    def _outcome(self, error: Exception) -> int:
        if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
            self._services.state.warn(f"cannot connect to {self.instance.name}: {error.strerror}")
            return EXHAUSTED
        return REFUSED if isinstance(error, ConnectionRefusedError | FileNotFoundError) else UNREACHABLE

    async def _connect(self) -> UpstreamConnection:
        instance, started_ns = self.instance, monotonic_ns()
        for _ in range(ATTEMPTS):
            try:
                connection = await self._connect_once()
                break
            except OSError as error:
                if error.errno not in LOCAL_ERRORS:
                    raise
                await asyncio.sleep(PAUSE_S)
        else:
            connection = await self._connect_once()
        took_ns = monotonic_ns() - started_ns
        instance.way_ns = min(instance.way_ns, took_ns) if instance.way_ns else took_ns
        return connection

    async def _connect_once(self) -> UpstreamConnection:
        endpoint = self.instance.endpoint
        sock = await connect(endpoint.where, endpoint.local if self._services.config.pool.unix else "")
        connection = UpstreamConnection(self._services, self.connections)
        Transport(self._reactor, sock, connection, first=True)
        return connection

    async def reach(self) -> bool:
        """Whether the instance accepts a connection within connect_timeout; the connection is kept."""
        try:
            async with asyncio.timeout(self._timeout_s):
                self.connections.give_back(await self._connect())
        except (OSError, TimeoutError):
            return False
        return True

    def prune(self, now_s: float) -> None:
        """Close expired idle connections; called once a second."""
        self.connections.prune(now_s, self._services.config.timeouts.upstream_idle)

    def close(self) -> None:
        """The instance has left the pool: close its idle connections."""
        self.connections.close()
