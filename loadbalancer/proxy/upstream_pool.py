"""What the proxy has to do with one instance: its connections, and what became of its requests.

Touches the connections; arithmetic of credits and ejection is the pool's.
"""

from __future__ import annotations

import asyncio
import errno
from time import monotonic_ns
from typing import TYPE_CHECKING

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.http.error_responses import BAD_ANSWER, CONNECTION_LIMITED, LOST
from twofold.loadbalancer.proxy.connect import connect
from twofold.loadbalancer.proxy.upstream import FREE, UpstreamConnection
from twofold.reactor.transport import Transport

if TYPE_CHECKING:
    from twofold.loadbalancer.balancing.instance import Instance
    from twofold.loadbalancer.balancing.selection import InstancePool
    from twofold.loadbalancer.proxy.client import Client
    from twofold.loadbalancer.proxy.process import Proxy

MAX_AGE = 3600.0  # seconds
REFUSED = (ConnectionRefusedError, FileNotFoundError)
# What is missing here, and says nothing of the instance: so many looks whether it is there again.
OURS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
PATIENCE = 20
PAUSE = 0.02  # seconds


class UpstreamPool:
    def __init__(self, proxy: Proxy, pool: InstancePool, instance: Instance) -> None:
        self.proxy = proxy
        self.pool = pool
        self.instance = instance
        self.idle: list[UpstreamConnection] = []  # LIFO: the few that are used stay warm
        self.connections: set[UpstreamConnection] = set()
        self.opening: dict[Client, asyncio.Task[None]] = {}
        self.line = proxy.config.pool.proxy_protocol_out  # said first of all, of one client: no reuse
        self.line = "" if self.line == "off" else self.line
        self.keeps = not self.line  # connections, for the next requests; not once it has left the pool

    def hand(self, client: Client, now: int) -> None:
        """The request goes to this instance: over an idle connection, or a new one."""
        self.pool.started(self.instance)
        client.link = self
        while self.idle and not self.idle[-1].transport.reading:  # it is closing
            self.idle.pop()
        if self.idle:
            self.idle.pop().ask(client, now)
        else:
            self.opening[client] = asyncio.get_running_loop().create_task(self._open(client))

    async def _open(self, client: Client) -> None:
        try:
            async with asyncio.timeout(self.proxy.config.timeouts.connect_timeout):
                upstream = await self._connect()
        except (OSError, TimeoutError) as error:
            if self.opening.pop(client, None) is not None:
                self._failed_to_open(client, error)
            return
        if self.opening.pop(client, None) is None:  # the client has left in the very last moment
            self._keep_or_close(upstream)
        else:
            upstream.ask(client, monotonic_ns())

    async def _connect(self) -> UpstreamConnection:
        instance, started = self.instance, monotonic_ns()
        for _ in range(PATIENCE):
            try:
                upstream = await self._connect_once()
                break
            except OSError as error:
                if error.errno not in OURS:
                    raise
                await asyncio.sleep(PAUSE)
        else:
            upstream = await self._connect_once()
        took = monotonic_ns() - started
        instance.way_ns = min(instance.way_ns, took) if instance.way_ns else took
        return upstream

    async def _connect_once(self) -> UpstreamConnection:
        sock = await connect(self.instance.entry, self.proxy.config.pool.unix)
        upstream = UpstreamConnection(self.proxy, self)
        Transport(self.proxy.reactor, sock, upstream, first=True)
        self.connections.add(upstream)
        self.proxy.cells[shared_memory.UPSTREAM_OPENED] += 1
        self.proxy.cells[shared_memory.UPSTREAM_OPEN] += 1
        return upstream

    async def reach(self) -> bool:
        """Whether it takes a connection, which is kept."""
        try:
            async with asyncio.timeout(self.proxy.config.timeouts.connect_timeout):
                self._keep_or_close(await self._connect())
        except (OSError, TimeoutError):
            return False
        return True

    def _keep_or_close(self, upstream: UpstreamConnection) -> None:
        """For a request to come, if it may."""
        if self.keeps:
            upstream.since = self.proxy.now
            self.idle.append(upstream)
        else:
            upstream.transport.close()

    # ------------------------------------------------------------------ what became of a request

    def done(self, upstream: UpstreamConnection, status: int, now: int) -> None:
        """A whole answer has come."""
        upstream.rejoin()
        until, upstream.heard_at = upstream.heard_at or now, 0
        self.pool.finished(self.instance, now, (until - upstream.asked_at) // 1000, status)
        if upstream.state == FREE:
            self._keep_or_close(upstream)
        else:
            upstream.transport.close()
            if upstream.said_close:  # it is about to stop: its other connections would end under our requests
                self._close_idle()
        if self.proxy.router.queued:
            self.proxy.router.dispatch(now)

    def broken(self, client: Client, why: str) -> None:
        """It failed within an answer."""
        now = monotonic_ns()
        self._recall(client)
        self.pool.failed(self.instance, now)
        self.proxy.warn(f"{self.instance.name}: {why}")
        self._let_go(client)
        client.cut_off(BAD_ANSWER)
        self.proxy.router.dispatch(now)

    def lost(self, client: Client) -> None:
        """It closed the connection before a byte of an answer."""
        now = monotonic_ns()
        self._recall(client)
        self.pool.failed(self.instance, now)
        self._let_go(client)
        if client.plan.replayable and client.can_replay():
            self.proxy.router.retry(client, self.instance, now)
        else:
            client.cut_off(LOST)
        self.proxy.router.dispatch(now)

    def _failed_to_open(self, client: Client, error: Exception) -> None:
        now = monotonic_ns()
        if isinstance(error, OSError) and error.errno in OURS:
            self.pool.cancelled(self.instance, now, late=False)
            self.proxy.warn(f"cannot connect to {self.instance.name}: {error.strerror}")
            self._let_go(client)
            client.cut_off(CONNECTION_LIMITED)
            return
        self.pool.connect_failed(self.instance, now, isinstance(error, REFUSED))
        self._let_go(client)
        if client.can_replay():
            self.proxy.router.retry(client, self.instance, now)
        else:
            client.cut_off(LOST)
        self.proxy.router.dispatch(now)

    def cancel(self, client: Client, late: bool = False) -> None:
        """The client has left, or its time is up: the instance need not go on (within this step)."""
        now = monotonic_ns()
        task = self.opening.pop(client, None)
        if task is not None:
            task.cancel()
        upstream = client.upstream
        if upstream is not None and upstream.client is client:
            upstream.client = None
            upstream.abort()
        self._recall(client)
        self.pool.cancelled(self.instance, now, late)
        self._let_go(client)
        self.proxy.router.dispatch(now)

    def _recall(self, client: Client) -> None:
        if client.upstream is not None:
            client.upstream.rejoin()

    def _let_go(self, client: Client) -> None:
        client.link = client.upstream = None

    # ------------------------------------------------------------------ connections

    def closed(self, upstream: UpstreamConnection) -> None:
        if upstream in self.connections:
            self.connections.discard(upstream)
            self.proxy.cells[shared_memory.UPSTREAM_OPEN] -= 1
        if upstream in self.idle:
            self.idle.remove(upstream)

    def prune(self, now: float, idle_limit: float) -> None:
        """Close what has idled: the instance must not do it first, while a request is under way."""
        fresh = [one for one in self.idle if now - one.since < idle_limit and now - one.opened < MAX_AGE]
        stale = [one for one in self.idle if one not in fresh] if len(fresh) != len(self.idle) else []
        self.idle = fresh
        for upstream in stale:
            upstream.transport.close()

    def close(self) -> None:
        """The instance is no more in the pool: nothing of it stays but what is being answered."""
        self.keeps = False
        self._close_idle()

    def _close_idle(self) -> None:
        idle, self.idle = self.idle, []
        for upstream in idle:
            upstream.transport.close()
