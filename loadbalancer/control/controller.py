"""The controller: decides the members of the pool and the bandwidth, and publishes both.

Touches the endpoint table, the bucket's rate, the watched file and the resolver; its parts probe the
instances, and serve the admin API and the status page.  Requests do not pass through it: when it dies, the
proxies continue with the last table, and the next controller resumes from the table.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from time import monotonic_ns
from typing import Any

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.lease import SharedBucket
from twofold.loadbalancer.bandwidth.policy import BandwidthPolicy
from twofold.loadbalancer.child_context import ControllerContext
from twofold.loadbalancer.control.discovery import Discovery, WatchedFile
from twofold.loadbalancer.control.endpoint import Endpoint
from twofold.loadbalancer.control.health_check import NOT_ASKED, Probe
from twofold.loadbalancer.control.prober import Prober
from twofold.loadbalancer.control.registry import Registry
from twofold.loadbalancer.control.status_source import StatusSource
from twofold.logs.console import say
from twofold.process import worker
from twofold.process.heartbeat import Heartbeat

FIRST_ROUND_S = 1.0  # longest wait of the first table for the resolver, and again for the first probes
BEAT_S = 0.1


class Controller:
    def __init__(self, context: ControllerContext) -> None:
        self.context = context
        self.config = config = context.config
        self.shared = shared_memory.attach(context.memory_fd)
        self.table = shared_memory.endpoint_table(self.shared)
        self.registry = Registry(self.shared)
        before = self._inherit()
        bucket = SharedBucket(self.shared, context.memory_fd)
        self.limits = BandwidthPolicy(bucket, config.bandwidth, before.get("limits", {}))
        self.status = StatusSource(
            self.shared, bucket, self.registry, self.limits, config.listen.tls_certificate
        )
        pool = config.pool
        known = self.registry.endpoints.values()
        self.discovery = Discovery.of(pool.upstream, pool.upstream_file, known)
        probe = Probe(pool.probe_path, pool.probe_timeout, pool.proxy_protocol_out)
        self.prober = Prober(probe, pool.probe_interval, self._changed)
        self._heart = Heartbeat(shared_memory.heartbeats(self.shared), context.beat)
        self._resolving: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[None]
        self._booted = False

    def _inherit(self) -> dict[str, Any]:
        """Read the decisions of the previous controller from the table; {} if it is unreadable."""
        try:
            before = self.table.read()
            self.registry.inherit(before.get("instances", ()), before.get("removed", ()))
            return before
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            say("warning", f"the table of the controller before cannot be read, the settings hold: {error!r}")
            return {}

    # ------------------------------------------------------------------ operations of the admin

    def set_bandwidth(self, mbps: float, maximum: float = 0.0) -> None:
        """Set the bandwidth in 10^6 bit/s. Raises ValueError for values out of range."""
        self.limits.set(mbps, maximum)
        self.publish()

    def add(self, text: str) -> Endpoint:
        """Add an instance, or cancel its removal or drain. Raises ValueError for a bad or surplus one."""
        endpoint = self.registry.add(text)
        say("info", f"{endpoint.name} is added")
        self._settle()
        return endpoint

    def drain(self, text: str) -> Endpoint:
        """Stop sending requests to an instance. Raises KeyError for an unknown name."""
        endpoint = self.registry.find(text)
        endpoint.drained = True
        say("info", f"{endpoint.name} is drained")
        self._settle()
        return endpoint

    def remove(self, text: str) -> Endpoint:
        """Drain an instance, then remove it. Raises KeyError for an unknown name."""
        endpoint = self.registry.find(text)
        self.registry.remove(endpoint)
        say("info", f"{endpoint.name} is removed")
        self._settle()
        return endpoint

    def reload(self) -> None:
        """Ask the supervisor to reload."""
        os.kill(self.context.supervisor, signal.SIGHUP)

    # ------------------------------------------------------------------ the pool

    def publish(self) -> None:
        if self._booted:
            self.table.publish({"limits": self.limits.published(), **self.registry.published()})

    def _settle(self) -> None:
        """After a change of the pool: start and stop probe tasks, and publish the table."""
        self.prober.follow(self.registry.endpoints, self._alongside)
        self.publish()

    def _changed(self, endpoint: Endpoint, turned: bool) -> None:
        """A probe's result differs from the last; `turned`: the endpoint went up or down."""
        if turned and endpoint.verdict.up:
            endpoint.since_ns = monotonic_ns() if self._booted else 0
            say("info", f"{endpoint.name} is up")
        elif turned:
            say("warning", f"{endpoint.name} is down: {endpoint.verdict.why}")
        self.publish()

    def _reconcile(self) -> None:
        self.registry.reconcile(self.discovery.wanted(), self.discovery.certain)
        self._settle()

    # ------------------------------------------------------------------ tasks

    def _alongside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that may end. If it raises, the controller ends and is restarted."""

        def ended(task: asyncio.Task[None]) -> None:
            failure = None if task.cancelled() else task.exception()
            if failure is not None and not self._failed.done():
                self._failed.set_exception(failure)

        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(ended)
        return task

    async def _watch_file(self, file: WatchedFile) -> None:
        while True:
            await asyncio.sleep(file.pause_s)
            if file.look():
                self._reconcile()

    async def _watch_names(self) -> None:
        while True:
            await asyncio.sleep(self.config.pool.resolve_interval)
            if await self.discovery.names.resolve_all(self.discovery.dns()):
                self._reconcile()

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._heart.beat()
            due_s = clock() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self.prober.stalls.beat(due_s, clock())
            gone = self.registry.part(monotonic_ns())
            for endpoint in gone:
                say("info", f"{endpoint.name} has left")
            if gone:
                self._settle()

    # ------------------------------------------------------------------ life

    async def serve(self) -> None:
        """Run until SIGTERM. Raises the exception of a task that fails."""
        loop = asyncio.get_running_loop()
        stopping = worker.stop_event(loop)
        self._failed = loop.create_future()
        await self._boot()
        os.write(self.context.ready, b"r")
        # Imported after the table is published, because the import is slow.
        from twofold.loadbalancer.control import admin_api

        works: list[Coroutine[Any, Any, None]] = [self._beat(), self._watch_names(), self.status.sample()]
        if self.discovery.file is not None:
            works.append(self._watch_file(self.discovery.file))
        tasks = [asyncio.ensure_future(work) for work in works]
        stop: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())
        servers = admin_api.AdminServers(self)
        serving = asyncio.ensure_future(servers.serve())
        until: list[asyncio.Future[Any]] = [stop, serving, self._failed, *tasks]
        done, _ = await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
        servers.stop()
        await serving
        for task in tasks:
            task.cancel()
        self.prober.stop()
        for ended in done:
            ended.result()

    async def _boot(self) -> None:
        """Publish the first table after the first probes, or after 2 x FIRST_ROUND_S."""
        if self.discovery.file is not None:
            self.discovery.file.look()
        self._resolving = self._alongside(self._resolve())
        await asyncio.wait([self._resolving], timeout=FIRST_ROUND_S)
        self._reconcile()
        until_s = asyncio.get_running_loop().time() + FIRST_ROUND_S
        while asyncio.get_running_loop().time() < until_s and any(
            one.verdict.why == NOT_ASKED for one in self.registry.endpoints.values()
        ):
            await asyncio.sleep(0.01)
        self._booted = True
        self.publish()

    async def _resolve(self) -> None:
        if await self.discovery.names.resolve_all(self.discovery.dns()) and self._booted:
            self._reconcile()


def run(context: ControllerContext) -> int:
    """Run the controller until SIGTERM; return the exit code."""
    asyncio.run(Controller(context).serve())
    return 0
