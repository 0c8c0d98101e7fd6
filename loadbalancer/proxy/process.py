"""A proxy: one process that accepts requests on the shared listeners and sends them to instances.

Touches the listeners, its connections, its counters and cells, and the pipe of the access log.  Makes and
connects the parts of a proxy, runs the tick and the drain.  Reads the controller's decisions from the
endpoint table; without a controller the last ones apply.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

import uvloop

from twofold.loadbalancer import endpoint_record, request_counts, shared_memory
from twofold.loadbalancer.access.tls import Certificates
from twofold.loadbalancer.balancing.candidates import SelectionSettings
from twofold.loadbalancer.balancing.instance_pool import InstancePool
from twofold.loadbalancer.bandwidth.lease import Lease, SharedBucket, http_bits, wire_bits
from twofold.loadbalancer.bandwidth.limiter import BandwidthLimiter
from twofold.loadbalancer.child_context import ProxyContext
from twofold.loadbalancer.config import Config
from twofold.loadbalancer.http import request_plan
from twofold.loadbalancer.http.request_plan import ProxyPlan
from twofold.loadbalancer.http.response_head import HeadTemplates
from twofold.loadbalancer.proxy import timeouts
from twofold.loadbalancer.proxy.admission import Admission
from twofold.loadbalancer.proxy.client import Client
from twofold.loadbalancer.proxy.connection_limit import ConnectionLimit
from twofold.loadbalancer.proxy.proxy_handshake import ProxyHandshake
from twofold.loadbalancer.proxy.router import Router
from twofold.loadbalancer.proxy.services import ProxyState, Services
from twofold.logs.journal import AccessJournal
from twofold.logs.records import AccessRecord
from twofold.process import worker
from twofold.process.heartbeat import Heartbeat
from twofold.reactor.event_loop import EventLoop
from twofold.reactor.reactor import Reactor
from twofold.telemetry.histograms import observe
from twofold.wire import request_head
from twofold.wire.request_ids import RequestIds

TICK_S = 0.02
GRACE_S = 0.2


class Proxy:
    """The parts of one proxy. Must be constructed within a running event loop."""

    def __init__(self, context: ProxyContext, reactor: Reactor) -> None:
        self.context = context
        self.config = config = context.config
        self.reactor = reactor
        self.shared = shared_memory.attach(context.memory_fd)
        self.journal = _journal(self.shared, context)
        self.state = ProxyState()
        self.limiter = _limiter(self.shared, context, self.journal.cells)
        self.services = _services(config, self.state, self.journal, self.limiter)
        self.instances = InstancePool(_selection(config), Random(), time.monotonic_ns())
        self.router = Router(self.services, reactor, self.instances)
        self.connections = ConnectionLimit(config.limits.max_connections, self.journal.cells)
        self.certificates = Certificates(config.listen) if config.listen.tls_certificate else None
        self._heart = Heartbeat(shared_memory.heartbeats(self.shared), context.beat)
        self._servers: list[asyncio.Server] = []
        self._table = shared_memory.endpoint_table(self.shared)
        self._sequence = 0
        self._settles = False
        self._second = 0  # Unix time in seconds, as of the last tick
        self._retry_period = 0  # number of the 250 ms period, as of the last tick
        self._check_at_s = 0.0
        self._check_pause_s = timeouts.pause_s(config.timeouts)

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report an exception from a callback or a protocol, which is a bug of the proxy, in one line."""
        error = context.get("exception")
        where = traceback.extract_tb(error.__traceback__)[-1:] if error is not None else []
        at = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in where)
        what = f"{type(error).__name__}: {error}" if error is not None else ""
        self.state.warn(f"a bug in the proxy: {context.get('message', '')}: {what}{at}")

    # ------------------------------------------------------------------ the tick

    def tick(self) -> None:
        """Every 20 ms."""
        self._heart.beat()
        now_s = self.state.now_s = asyncio.get_running_loop().time()
        now_ns = time.monotonic_ns()
        sequence = self._table.sequence
        if sequence != self._sequence:
            self._sequence = sequence
            entries = self._table.read().get("instances", [])
            self.router.apply([endpoint_record.from_json(entry) for entry in entries], now_ns)
        self._settle(now_ns)
        self.router.tick(now_ns)
        self.limiter.tick()
        self._gauges()
        self.journal.flush()
        retry_period = int(now_s * 4)
        if retry_period != self._retry_period:
            self._retry_period = retry_period
            self.router.try_unreachable()
        self.state.wall_s = time.time()
        second = int(self.state.wall_s)
        if second != self._second:
            self._second = second
            self._every_second(second)
        if now_s >= self._check_at_s:
            self._check_at_s = now_s + self._check_pause_s
            self._check_timeouts()

    def _settle(self, now_ns: int) -> None:
        """At every second tick: update credits and latencies, and write the cells."""
        self._settles = not self._settles
        if self._settles:
            self.instances.tick(now_ns)
            for instance in self.instances.instances.values():
                instance.show(shared_memory.cell(self.shared, self.context.number, instance.cell))

    def _every_second(self, second: int) -> None:
        self.state.set_date(second)
        self.router.prune(self.state.now_s)
        self.connections.forget()
        if self.certificates is not None:
            self.certificates.renew()

    def _check_timeouts(self) -> None:
        for client in list(self.connections.clients):
            timeouts.check(cast(Client, client), self.router, self.state.now_s)

    def _gauges(self) -> None:
        cells = self.journal.cells
        cells[shared_memory.WAITING] = len(self.router.waiting)
        cells[shared_memory.INSIDE] = sum(one.outstanding for one in self.instances.instances.values())
        cells[shared_memory.THROTTLED] = self.limiter.waiting

    # ------------------------------------------------------------------ life

    async def serve(self) -> None:
        """Accept until SIGTERM, then drain for at most drain_timeout seconds."""
        loop = asyncio.get_running_loop()
        stopping = worker.stop_event(loop)
        loop.set_exception_handler(self._unexpected)
        self.limiter.start(loop)
        self.tick()
        worker.settle_garbage_collector()
        for listener in self.context.listeners:
            await self._listen(loop, listener)
        ticking = loop.create_task(worker.tick_forever(TICK_S, self.tick, self._warn_bug))
        os.write(self.context.ready, b"r")
        await stopping.wait()
        self.reactor.stop_listening()
        for server in self._servers:
            server.close()
        await self._drain()
        ticking.cancel()
        self.router.close()
        self.journal.close()

    async def _listen(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        """Serve TLS and PROXY lines with asyncio protocols, plain connections with the reactor."""
        local, lines = listener.family == socket.AF_UNIX, self.config.listen.proxy_protocol != "off"
        tls = None if self.certificates is None or local else self.certificates.context
        if lines and not local:
            server = await loop.create_server(
                lambda: ProxyHandshake(self.services, self._client, tls), sock=listener
            )
        elif tls is not None:
            server = await loop.create_server(
                lambda: cast("asyncio.Protocol", self._client()), sock=listener, ssl=tls,
                ssl_handshake_timeout=self.config.timeouts.head_timeout,
            )  # fmt: skip
        else:
            self.reactor.listen(listener, self._client)
            return
        self._servers.append(server)

    def _client(self) -> Client:
        return Client(self.services, self.router, self.connections)

    async def _drain(self) -> None:
        self.state.draining = True
        deadline_s = self.state.now_s + self.config.timeouts.drain_timeout
        await asyncio.sleep(GRACE_S)  # serve the connections that the kernel had already accepted
        while self.connections.clients and self.state.now_s < deadline_s:
            self._check_timeouts()
            await asyncio.sleep(TICK_S)
        for client in list(self.connections.clients):
            client.transport.abort()
        await asyncio.sleep(0)

    def _warn_bug(self, error: str) -> None:
        self.state.warn(f"a bug in the proxy's tick: {error}")


def _journal(shared: mmap.mmap, context: ProxyContext) -> AccessJournal[AccessRecord]:
    counters = shared_memory.open_counters(shared, context.number)
    source = context.config.log.deployment_id or "twofold"
    return AccessJournal(
        counters, shared_memory.ACCESS_DROPPED, request_counts.count, context.access_log, source
    )


def _services(
    config: Config, state: ProxyState, journal: AccessJournal[AccessRecord], limiter: BandwidthLimiter
) -> Services:
    return Services(
        config=config,
        state=state,
        cells=journal.cells,
        entries=journal.entries,
        ids=RequestIds(),
        limiter=limiter,
        templates=HeadTemplates(),
        admission=Admission(config, state, journal.cells, limiter),
        unreadable=_unreadable(),
    )


def _unreadable() -> ProxyPlan:
    plan = request_plan.make_plan(request_head.parse_head(b"GET / HTTP/1.0\r\n\r\n"), 0, None)
    return replace(plan, message=b"- - -")


def _limiter(shared: mmap.mmap, context: ProxyContext, cells: list[int]) -> BandwidthLimiter:
    bandwidth = context.config.bandwidth
    bits = wire_bits if bandwidth.accounting == "wire" else http_bits
    lease = Lease(SharedBucket(shared, context.memory_fd), bits, context.number)
    return BandwidthLimiter(
        lease, bandwidth.delay_budget, waited=partial(observe, cells, shared_memory.THROTTLE)
    )


def _selection(config: Config) -> SelectionSettings:
    chosen = config.pool
    slow_start_ns = int(chosen.slow_start * 1e9)
    return SelectionSettings(chosen.credits, slow_start_ns, chosen.panic_percent, config.listen.proxies)


async def _serve(context: ProxyContext) -> None:
    await Proxy(context, Reactor(asyncio.get_running_loop())).serve()


def run(context: ProxyContext) -> int:
    """Run a proxy until SIGTERM; return the exit code."""
    worker.raise_descriptor_limit()
    listen = context.config.listen
    foreign = bool(listen.tls_certificate) or listen.proxy_protocol != "off"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if foreign else EventLoop) as runner:
        runner.run(_serve(context))
    return 0
