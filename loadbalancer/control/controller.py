"""The controller: the control plane. Decides who is in the pool and how much may pass, and publishes it.

Touches the endpoint table, the bucket's rate, the watched file and the resolver; its parts probe the
instances, and serve the admin API and the status page.  No request passes here: when it dies, the proxies go
on with the last table, and the next controller takes up what the table says.
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

FIRST_ROUND_S = 1.0  # at most, that the first table waits for the resolver, and for the first probes
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
        """What a predecessor had decided; nothing if it cannot be read."""
        try:
            before = self.table.read()
            self.registry.inherit(before.get("instances", ()), before.get("removed", ()))
            return before
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            say("warning", f"the table of the controller before cannot be read, the settings hold: {error!r}")
            return {}

    # ------------------------------------------------------------------ what the admin may do

    def set_bandwidth(self, mbps: float, maximum: float = 0.0) -> None:
        """ValueError if the two do not fit together."""
        self.limits.set(mbps, maximum)
        self.publish()

    def add(self, text: str) -> Endpoint:
        """It joins, or stays after all, or takes requests again. ValueError if it cannot."""
        endpoint = self.registry.add(text)
        say("info", f"{endpoint.name} is added")
        self._settle()
        return endpoint

    def drain(self, text: str) -> Endpoint:
        """It finishes what it has, and gets nothing more. KeyError if there is none of that name."""
        endpoint = self.registry.find(text)
        endpoint.drained = True
        say("info", f"{endpoint.name} is drained")
        self._settle()
        return endpoint

    def remove(self, text: str) -> Endpoint:
        """It is drained, then forgotten. KeyError."""
        endpoint = self.registry.find(text)
        self.registry.remove(endpoint)
        say("info", f"{endpoint.name} is removed")
        self._settle()
        return endpoint

    def reload(self) -> None:
        os.kill(self.context.supervisor, signal.SIGHUP)

    # ------------------------------------------------------------------ the pool

    def publish(self) -> None:
        if self._booted:
            self.table.publish({"limits": self.limits.published(), **self.registry.published()})

    def _settle(self) -> None:
        """The pool has changed: one task probes each endpoint, and the table says so."""
        self.prober.follow(self.registry.endpoints, self._alongside)
        self.publish()

    def _changed(self, endpoint: Endpoint, turned: bool) -> None:
        """A probe has found something new; `turned`: the endpoint is up, or down, since then."""
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
        """A task that may end; if it fails, so does the controller, and a new one takes its place."""

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
        """Until told to stop; raises what ends one of its tasks."""
        loop = asyncio.get_running_loop()
        stopping = worker.stop_event(loop)
        self._failed = loop.create_future()
        await self._boot()
        os.write(self.context.ready, b"r")
        # Only now, when the proxies have their table: it takes longer to import than all before it.
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
        """Proxies should not hear of instances before their first probes have been answered."""
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
    """Be the controller until told to stop; the exit code."""
    asyncio.run(Controller(context).serve())
    return 0
