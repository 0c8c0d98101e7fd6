"""A proxy: one process that takes requests on the shared listeners and hands them to instances.

Touches the listeners, its connections, its counters and cells, and the pipe of the access log.
What all connections share lives here: plans of heads seen before, ids, the tick, the drain.  The
controller's decisions are read from the board; without a controller the last ones hold.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import resource
import signal
import socket
import time
import traceback
from dataclasses import replace
from email.utils import formatdate
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

import uvloop

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.access.tls import Certificates
from twofold.loadbalancer.balancing.selection import InstancePool, SelectionSettings
from twofold.loadbalancer.bandwidth.lease import Lease, SharedBucket, http_bits, wire_bits
from twofold.loadbalancer.bandwidth.limiter import BandwidthLimiter
from twofold.loadbalancer.child_context import ProxyContext
from twofold.loadbalancer.config import Config
from twofold.loadbalancer.http import request_plan
from twofold.loadbalancer.http.response_head import HeadTemplates
from twofold.loadbalancer.proxy import timeouts
from twofold.loadbalancer.proxy.admission import Admission
from twofold.loadbalancer.proxy.client import Client
from twofold.loadbalancer.proxy.connection_limit import ConnectionLimit
from twofold.loadbalancer.proxy.journal import Journal, waited
from twofold.loadbalancer.proxy.proxy_handshake import ProxyHandshake
from twofold.loadbalancer.proxy.router import Router
from twofold.logs.console import say
from twofold.reactor.event_loop import EventLoop
from twofold.reactor.reactor import Reactor
from twofold.wire import request_head
from twofold.wire.request_ids import RequestIds

TICK = 0.02
GRACE = 0.2  # seconds
GC_THRESHOLD = 20000


class Proxy:
    def __init__(self, place: ProxyContext) -> None:
        self.place = place
        self.config = config = place.config
        self.shared = shared_memory.attach(place.memory_fd)
        self.book = Journal(
            self.shared, place.number, place.access_log, config.log.deployment_id or "twofold"
        )
        self.cells = self.book.cells
        self.journal = self.book.entries
        self.limiter = BandwidthLimiter(
            _meter(self.shared, place),
            config.bandwidth.delay_budget,
            waited=partial(waited, self.cells, shared_memory.THROTTLE),
        )
        self.pool = InstancePool(_pool_settings(config), Random(), time.monotonic_ns())
        self.router = Router(self, self.pool)
        self.templates = HeadTemplates()
        self.ids = RequestIds()
        self.connection_limit = ConnectionLimit(config.limits.max_connections)
        self.clients = self.connection_limit.clients
        self.certificates = Certificates(config.listen) if config.listen.tls_certificate else None
        self.reactor: Reactor = None  # type: ignore[assignment]  # as soon as there is a loop
        self._servers: list[asyncio.Server] = []
        self.draining = False
        self.now = 0.0  # the loop's clock as of the last tick: fine enough for timeouts
        self.wall_offset = time.time_ns() - time.monotonic_ns()
        self.date = b""
        self.wall = time.time()
        self._warned = -1.0
        self.no_plan = request_plan.make_plan(request_head.parse_head(b"GET / HTTP/1.0\r\n\r\n"), 0, None)
        self.no_plan = replace(self.no_plan, message=b"- - -")  # of a head that could not be read
        self.admission = Admission(self)
        self.hops = self.admission.hops
        self.simple = self.admission.simple
        self._board = shared_memory.Board(self.shared)
        self._sequence = 0
        self._second = 0
        self._quarter = 0
        self._check_at = 0.0
        self._check_pause = timeouts.pause(config.timeouts)

    def connected(self, client: Client) -> None:
        cells = self.cells
        cells[shared_memory.ACCEPTED] += 1
        cells[shared_memory.OPEN_CONNECTIONS] += 1
        self.clients.add(client)
        self.admission.greet(client)

    def disconnected(self, client: Client) -> None:
        self.clients.discard(client)
        self.cells[shared_memory.OPEN_CONNECTIONS] -= 1

    def cell(self, instance: int) -> memoryview:
        """This proxy's words about the instance with this cell number."""
        return shared_memory.cell(self.shared, self.place.number, instance)

    def warn(self, message: str) -> None:
        """One line a second at most: an instance that fails must not fill the operator's screen."""
        if self.now - self._warned >= 1.0:
            self._warned = self.now
            say("warning", message)

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A defect of ours, in a callback or a protocol: said in one line, which waits for nobody."""
        error = context.get("exception")
        where = traceback.extract_tb(error.__traceback__)[-1:] if error is not None else []
        at = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in where)
        what = f"{type(error).__name__}: {error}" if error is not None else ""
        self.warn(f"a bug in the proxy: {context.get('message', '')}: {what}{at}")

    # ------------------------------------------------------------------ the tick

    def tick(self) -> None:
        """Every 20 ms."""
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        now = time.monotonic_ns()
        sequence = self._board.sequence
        if sequence != self._sequence:
            self._sequence = sequence
            self.router.apply(self._board.read().get("instances", []), now)
        self.router.tick(now)
        self.limiter.tick()
        self._gauges()
        self.book.flush()
        quarter = int(self.now * 4)
        if quarter != self._quarter:
            self._quarter = quarter
            self.router.try_unreachable()
        self.wall = time.time()
        wall = int(self.wall)
        if wall != self._second:
            self._second = wall
            self._every_second(wall)
        if self.now >= self._check_at:
            self._check_deadlines()

    def _every_second(self, wall: int) -> None:
        self.date = formatdate(wall, usegmt=True).encode()
        self.wall_offset = time.time_ns() - time.monotonic_ns()
        self.router.prune()
        self.connection_limit.forget()
        if self.certificates is not None:
            self.certificates.renew()

    def _check_deadlines(self) -> None:
        self._check_at = self.now + self._check_pause
        for client in list(self.clients):
            timeouts.check(client, self.now)

    def _gauges(self) -> None:
        cells = self.cells
        cells[shared_memory.WAITING] = len(self.router.waiting)
        cells[shared_memory.INSIDE] = sum(one.outstanding for one in self.pool.instances.values())
        cells[shared_memory.THROTTLED] = self.limiter.waiting

    # ------------------------------------------------------------------ life

    async def serve(self) -> None:
        """Accept until SIGTERM, then finish what is in hand."""
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stopping.set)
        loop.set_exception_handler(self._unexpected)
        self.reactor = Reactor(loop)
        self.limiter.start(loop)
        self.tick()
        # What has been imported never becomes garbage; scanning it costs 10 ms at a time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 10, 100)
        for listener in self.place.listeners:
            await self._listen(loop, listener)
        ticking = loop.create_task(self._tick_forever())
        os.write(self.place.ready, b"r")
        await stopping.wait()
        self.reactor.stop_listening()
        for server in self._servers:
            server.close()
        await self._drain()
        ticking.cancel()
        self.router.close()
        self.book.close()

    async def _listen(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        """TLS, and what comes before it, is uvloop's; plain connections take turns in the reactor."""
        local, lines = listener.family == socket.AF_UNIX, self.config.listen.proxy_protocol != "off"
        context = None if self.certificates is None or local else self.certificates.context
        if lines and not local:
            server = await loop.create_server(lambda: ProxyHandshake(self, context), sock=listener)
        elif context is not None:
            patience = self.config.timeouts.head_timeout
            server = await loop.create_server(
                self._client, sock=listener, ssl=context, ssl_handshake_timeout=patience
            )
        else:
            self.reactor.listen(listener, lambda: Client(self))
            return
        self._servers.append(server)

    def _client(self) -> asyncio.Protocol:
        return cast("asyncio.Protocol", Client(self))

    async def _drain(self) -> None:
        self.draining = True
        deadline = self.now + self.config.timeouts.drain_timeout
        await asyncio.sleep(GRACE)  # what the kernel had already accepted for us is still served
        while self.clients and self.now < deadline:
            for client in list(self.clients):
                timeouts.check(client, self.now)
            await asyncio.sleep(TICK)
        for client in list(self.clients):
            client.transport.abort()
        await asyncio.sleep(0)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                self.tick()
            except Exception as error:  # without a tick there would be no deadlines, logs, counts, timeouts
                self.warn(f"a bug in the proxy's tick: {type(error).__name__}: {error}")


def _meter(shared: mmap.mmap, place: ProxyContext) -> Lease:
    bits = wire_bits if place.config.bandwidth.accounting == "wire" else http_bits
    return Lease(SharedBucket(shared, place.memory_fd), bits, place.number)


def _pool_settings(config: Config) -> SelectionSettings:
    chosen = config.pool
    return SelectionSettings(
        chosen.credits, int(chosen.slow_start * 1e9), chosen.panic_percent, config.listen.proxies
    )


def run(place: ProxyContext) -> int:
    """Be a proxy until told to stop; the exit code."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    proxy = Proxy(place)
    listen = place.config.listen
    foreign = proxy.certificates is not None or listen.proxy_protocol != "off"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if foreign else EventLoop) as runner:
        runner.run(proxy.serve())
    return 0
