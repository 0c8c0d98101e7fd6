"""The controller: the control plane. Decides who is in the pool and how much may pass, and publishes it.

Touches the board, the bucket's rate, the instances' health paths, the watched file and the resolver,
and serves the admin API and the status page.  No request passes here: when it dies, the proxies go
on with the last board, and the next controller takes up what the board says.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from time import monotonic_ns
from typing import Any

from twofold import __version__
from twofold.errors import ConfigError
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.lease import SharedBucket
from twofold.loadbalancer.bandwidth.policy import BandwidthPolicy
from twofold.loadbalancer.child_context import ControllerContext
from twofold.loadbalancer.control import sliding_window, status_view
from twofold.loadbalancer.control.discovery import Discovery, WatchedFile
from twofold.loadbalancer.control.endpoint import Endpoint
from twofold.loadbalancer.control.health_check import NOT_ASKED, Probe
from twofold.loadbalancer.control.registry import Registry
from twofold.logs.console import say
from twofold.native import load

FIRST_ROUND = 1.0  # seconds at most that the first board waits for the resolver, and for the first probes
JITTER = 0.1
SOON = 0.2  # part of the interval after which an instance that answered unexpectedly is asked again
BEAT = 0.1
LATE = 0.2  # seconds by which a beat may be late before what a probe says of others says more of us


class StallDetector:
    """Whether this process gets the processor: while it does not, nobody else is to blame."""

    def __init__(self) -> None:
        self.faltered = -1.0  # on the loop's clock

    def beat(self, due: float, now: float) -> None:
        if now - due > LATE:
            self.faltered = now


class Controller:
    def __init__(self, place: ControllerContext) -> None:
        self.place = place
        self.config = config = place.config
        self.shared = shared_memory.attach(place.memory_fd)
        self.board = shared_memory.Board(self.shared)
        self.bucket = SharedBucket(self.shared, place.memory_fd)
        self.registry = Registry(self.shared)
        self.pulse = StallDetector()
        self.recent = sliding_window.SlidingWindow()
        self.started = time.time()
        self.sampled = asyncio.Event()  # set, and cleared again, with every reading
        before = self._inherit()
        self.limits = BandwidthPolicy(self.bucket, config.bandwidth, before.get("limits", {}))
        pool = config.pool
        known = self.registry.endpoints.values()
        self.sources = Discovery.of(pool.upstream, pool.upstream_file, known)
        self._question = Probe(pool.probe_path, pool.probe_timeout, pool.proxy_protocol_out)
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._resolving: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[None]
        self._booted = False

    def _inherit(self) -> dict[str, Any]:
        """What a predecessor had decided; nothing if it cannot be read."""
        try:
            before = self.board.read()
            self.registry.inherit(before.get("instances", ()), before.get("removed", ()))
            return before
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            say("warning", f"the board of the controller before cannot be read, the settings hold: {error!r}")
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
        os.kill(self.place.supervisor, signal.SIGHUP)

    # ------------------------------------------------------------------ what it shows

    def facts(self) -> status_view.StatusFacts:
        with self.bucket.open() as bucket:
            rate, debt = bucket.rate, bucket.debt(monotonic_ns()) if bucket.rate else 0
        return status_view.StatusFacts(
            version=__version__,
            started=self.started,
            rate=rate,
            debt=debt,
            mbps=self.limits.mbps,
            maximum=self.limits.maximum,
            endpoints=[endpoint.entry() for endpoint in self.registry.endpoints.values()],
            certificate_expires=self._certificate_expires(),
            reloads_refused=shared_memory.RefusedReloads(self.shared).read(),
            compiled=load.used(),
        )

    def _certificate_expires(self) -> int:
        path = self.config.listen.tls_certificate
        if not path:
            return 0
        from twofold.loadbalancer.access import (
            tls,  # with its library, which only they need who have a certificate
        )

        try:
            return tls.not_after(Path(path))
        except ConfigError:
            return 0  # the proxies have said so, and serve the last one

    def reading(self) -> sliding_window.Reading:
        cells = {name: endpoint.cell for name, endpoint in self.registry.endpoints.items()}
        return sliding_window.read(self.shared, cells, monotonic_ns())

    def state(self) -> dict[str, Any]:
        return status_view.state(self.facts(), self.recent, self.reading())

    def exposition(self) -> bytes:
        from twofold.loadbalancer.control import (
            prometheus,  # with its library, which is not needed before the first scrape
        )

        return prometheus.exposition(self.facts(), self.recent, self.reading())

    def publish(self) -> None:
        if self._booted:
            self.board.publish({"limits": self.limits.board(), **self.registry.board()})

    # ------------------------------------------------------------------ tasks

    def _settle(self) -> None:
        """Somebody has come, gone or changed: everybody is watched by one task, and the board says so."""
        endpoints = self.registry.endpoints
        for name in [name for name in self._watches if name not in endpoints]:
            self._watches.pop(name).cancel()
        for name, endpoint in endpoints.items():
            if name not in self._watches:
                self._watches[name] = self._alongside(self._watch(endpoint))
        self.publish()

    def _alongside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that may end; if it fails, so does the controller, and a new one takes its place."""

        def ended(task: asyncio.Task[None]) -> None:
            failure = None if task.cancelled() else task.exception()
            if failure is not None and not self._failed.done():
                self._failed.set_exception(failure)

        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(ended)
        return task

    def _reconcile(self) -> None:
        self.registry.reconcile(self.sources.wanted(), self.sources.certain)
        self._settle()

    async def _watch(self, endpoint: Endpoint) -> None:
        """Probe it for ever."""
        loop, interval, verdict = (
            asyncio.get_running_loop(),
            self.config.pool.probe_interval,
            endpoint.verdict,
        )
        while True:
            began = loop.time()
            answer = await self._question.put(endpoint.where)
            was_up = verdict.up
            if (answer.well or self.pulse.faltered < began) and verdict.hear(answer):
                if verdict.up != was_up:
                    self._turned(endpoint)
                self.publish()
            pause = interval * (SOON if verdict.wavering else 1.0)
            await asyncio.sleep(pause * (1 + random.uniform(-JITTER, JITTER)))

    def _turned(self, endpoint: Endpoint) -> None:
        if endpoint.verdict.up:
            endpoint.since_ns = monotonic_ns() if self._booted else 0
            say("info", f"{endpoint.name} is up")
        else:
            say("warning", f"{endpoint.name} is down: {endpoint.verdict.why}")

    async def _watch_file(self, file: WatchedFile) -> None:
        while True:
            await asyncio.sleep(file.pause)
            if file.look():
                self._reconcile()

    async def _watch_names(self) -> None:
        while True:
            await asyncio.sleep(self.config.pool.resolve_interval)
            if await self.sources.names.resolve_all(self.sources.dns()):
                self._reconcile()

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + BEAT
            await asyncio.sleep(BEAT)
            self.pulse.beat(due, clock())
            gone = self.registry.part(monotonic_ns())
            for endpoint in gone:
                say("info", f"{endpoint.name} has left")
            if gone:
                self._settle()

    async def _sample(self) -> None:
        while True:
            reading = self.reading()
            self.recent.hear(reading, self.limits.rate)
            throttled = (
                reading.cells[shared_memory.THROTTLED] > 0
            )  # what waits will be counted when it has ended
            self.limits.hear(reading.at, 1.0 if throttled else self.recent.utilisation())
            self.sampled.set()
            self.sampled.clear()
            await asyncio.sleep(sliding_window.STEP)

    # ------------------------------------------------------------------ life

    async def serve(self) -> None:
        """Until told to stop; raises what ends one of its tasks."""
        stopping, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stopping.set)
        self._failed = loop.create_future()
        await self._boot()
        os.write(self.place.ready, b"r")
        # Only now, when the proxies have their board: it takes longer to import than all before it.
        from twofold.loadbalancer.control import admin_api

        works: list[Coroutine[Any, Any, None]] = [self._beat(), self._watch_names(), self._sample()]
        if self.sources.file is not None:
            works.append(self._watch_file(self.sources.file))
        tasks = [asyncio.ensure_future(work) for work in works]
        stop: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())
        services = admin_api.AdminServers(self)
        serving = asyncio.ensure_future(services.serve())
        until: list[asyncio.Future[Any]] = [stop, serving, self._failed, *tasks]
        done, _ = await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
        services.stop()
        await serving
        for task in (*tasks, *self._watches.values()):
            task.cancel()
        for ended in done:
            ended.result()

    async def _boot(self) -> None:
        """Proxies should not hear of instances of whom nobody knows yet whether they are well."""
        if self.sources.file is not None:
            self.sources.file.look()
        self._resolving = self._alongside(self._resolve())
        await asyncio.wait([self._resolving], timeout=FIRST_ROUND)
        self._reconcile()
        waited = 0.0
        while waited < FIRST_ROUND and any(
            one.verdict.why == NOT_ASKED for one in self.registry.endpoints.values()
        ):
            await asyncio.sleep(0.01)
            waited += 0.01
        self._booted = True
        self.publish()

    async def _resolve(self) -> None:
        if await self.sources.names.resolve_all(self.sources.dns()) and self._booted:
            self._reconcile()


def run(place: ControllerContext) -> int:
    """Be the controller until told to stop; the exit code."""
    asyncio.run(Controller(place).serve())
    return 0
