"""Probes the health of each endpoint of the pool, in one task for each.

Touches the endpoints' health paths.  Probe failures during a stall of this process do not count.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from twofold.loadbalancer.control.endpoint import Endpoint
from twofold.loadbalancer.control.health_check import Probe

JITTER = 0.1  # share of the interval, so that the probes of many endpoints spread
SOON = 0.2  # share of the interval after which an unexpected result is confirmed
LATE_S = 0.2  # delay of a beat that counts as a stall


class StallDetector:
    """Detects stalls of this event loop, for example when the process gets no processor time."""

    def __init__(self) -> None:
        self.stalled_s = -1.0  # when the last stall ended, on the loop's clock

    def beat(self, due_s: float, now_s: float) -> None:
        if now_s - due_s > LATE_S:
            self.stalled_s = now_s


class Prober:
    """Calls `changed(endpoint, turned)` when a result differs from the last; turned: it went up or down."""

    def __init__(self, probe: Probe, interval_s: float, changed: Callable[[Endpoint, bool], None]) -> None:
        self.stalls = StallDetector()
        self._probe = probe
        self._interval_s = interval_s
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def follow(
        self,
        endpoints: Mapping[str, Endpoint],
        alongside: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        """Probe exactly `endpoints`; `alongside` starts a task and observes its failure."""
        for name in [name for name in self._tasks if name not in endpoints]:
            self._tasks.pop(name).cancel()
        for name, endpoint in endpoints.items():
            if name not in self._tasks:
                self._tasks[name] = alongside(self._watch(endpoint))

    async def _watch(self, endpoint: Endpoint) -> None:
        clock, verdict = asyncio.get_running_loop().time, endpoint.verdict
        while True:
            began_s = clock()
            answer = await self._probe.put(endpoint.where)
            was_up = verdict.up
            if (answer.well or self.stalls.stalled_s < began_s) and verdict.hear(answer):
                self._changed(endpoint, verdict.up != was_up)
            pause_s = self._interval_s * (SOON if verdict.flapping else 1.0)
            await asyncio.sleep(pause_s * (1 + random.uniform(-JITTER, JITTER)))

    def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
