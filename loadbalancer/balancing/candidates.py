"""The instances that may be chosen, their order, and their credits.

Pure arithmetic, the clock is an argument (monotonic ns).  `arrange` computes order and credits once per tick,
so that `choose` is one short loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from twofold.loadbalancer.balancing.instance import Instance

SECOND_NS = 1_000_000_000
FULL: Final = 1 << 62  # more than any load
# An instance is *hot*, that is slow, above HOT times the median latency, until it is below COLD times it.
HOT, COLD = 2.0, 1.5
SCATTER_US = 500  # latency differences below this are noise
LONGEST_PATIENCE_NS = SECOND_NS // 4  # a queue waits no longer for other instances while a hot one has room
TRIAL_NS = SECOND_NS  # least time between two trials of a hot instance
TRIAL_REQUESTS = 250  # least requests between two trials, so that trials do not raise the pool's p99
LONGEST_TRIAL_NS = 10 * SECOND_NS  # after which TRIAL_REQUESTS does not apply


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    credits: int = 0  # for each instance; 0: from its workers and its rate
    slow_start_ns: int = 5 * SECOND_NS
    panic_percent: int = 50
    proxies: int = 1  # number of proxies that share the instances' credits


class Candidates:
    """`panic`: less than `panic_percent` of the instances serve, so ejected ones are chosen as well."""

    __slots__ = ("_hot", "_patience", "_random", "_ready", "panic", "settings")

    def __init__(self, settings: SelectionSettings, random: Random) -> None:
        self.settings = settings
        self.panic = False
        self._random = random
        self._ready: list[Instance] = []  # in order of preference at equal load
        self._hot: list[Instance] = []
        self._patience = FULL  # queue length from which hot instances are chosen

    @property
    def usable(self) -> bool:
        """Whether any instance may get a free credit later."""
        return bool(self._ready)

    # ------------------------------------------------------------------ the hot path

    def choose(self, waiting: int = 0) -> Instance | None:
        """The instance for the next request; None: queue it. `waiting`: the queue's length, including it."""
        best = None
        least = FULL
        for instance in self._ready:
            load = instance.load
            if load < least and load < instance.limit:
                if not load:
                    return instance
                best, least = instance, load
        return best or self._choose_for_queue(waiting)

    def _choose_for_queue(self, waiting: int) -> Instance | None:
        """A choice beyond the usual credits: the last credit, or a hot instance, for a long queue."""
        roomy: list[Instance] = []
        if waiting >= len(self._ready):
            roomy = [one for one in self._ready if one.load < one.full]
        if not roomy and waiting >= self._patience:
            roomy = [one for one in self._hot if one.load < one.limit]
        return min(roomy, key=lambda one: one.load, default=None)

    def choose_for_upload(self) -> Instance | None:
        """As `choose`, for a request whose body has not arrived: it occupies no worker until then."""
        roomy = [one for one in self._ready if one.load < one.limit]
        return min(roomy, key=lambda one: (one.apart, one.load), default=None)

    def another(self, instance: Instance) -> Instance | None:
        """An instance for a retry, other than `instance`; credits do not apply, because retries are few."""
        others = [one for one in self._ready if one is not instance and not one.outliers.on_trial]
        others = others or [one for one in self._hot if one is not instance]
        return min(others, key=lambda one: one.load, default=None)

    def put_last(self, instance: Instance) -> None:
        """Move `instance` to the end until the next tick, so that failing requests spread over the pool."""
        if instance in self._ready:
            self._ready.remove(instance)
            self._ready.append(instance)

    # ------------------------------------------------------------------ ticks

    def arrange(self, members: Sequence[Instance], now_ns: int, flow: float, typical_us: float) -> None:
        """Order the candidates, mark the hot ones, and grant credits.

        `flow`: successes per second of the pool; `typical_us`: their mean latency. Order: by
        round(4 log2(latency / median)), random within a class. Hot instances are used from a queue length of
        flow x min(latency of the fastest hot one - typical, LONGEST_PATIENCE_NS): the requests that the
        others complete in the time by which the hot one is slower.
        """
        for one in members:
            one.suspected = one.outliers.expire(now_ns) or one.suspected
        chosen = [one for one in members if one.serving]
        self.panic = len(chosen) * 100 < self.settings.panic_percent * len(members)
        if self.panic:
            chosen = [one for one in members if not (one.outliers.out and one.outliers.unreachable)]
        median_us = _mark_hot(chosen)
        self._grant(chosen, now_ns)
        self._random.shuffle(chosen)
        ready = [one for one in chosen if not one.hot]
        ready.sort(key=lambda one: round(4 * math.log2(max(one.latency_us, 1.0) / median_us)))
        self._hot = [one for one in chosen if one.hot]
        self._ready = ready
        gap_us = min((one.latency_us for one in self._hot), default=0.0) - typical_us
        patience = flow * min(gap_us * 1000, LONGEST_PATIENCE_NS) / SECOND_NS
        self._patience = max(1, math.ceil(patience)) if self._hot else FULL

    def _grant(self, chosen: list[Instance], now_ns: int) -> None:
        """credits = 1 + (fixed or measured - 1) * ramp, where ramp grows from 0 to 1 in slow_start_ns.

        An instance on trial gets one credit. While all instances ramp, each gets a credit per worker.
        """
        settings = self.settings
        some_ramped = any(
            now_ns - one.ramp_from_ns >= settings.slow_start_ns or not one.ramp_from_ns for one in chosen
        )
        for one in chosen:
            ramp = (now_ns - one.ramp_from_ns) / settings.slow_start_ns if one.ramp_from_ns else 1.0
            one.grant(settings.credits, settings.proxies, min(1.0, max(ramp, 0.0)))
            if not some_ramped and one.credits < one.workers:
                one.allow(one.workers)
            if one.outliers.on_trial:
                one.allow(1)

    def try_hot(self, requests: int, now_ns: int) -> None:
        """Put hot instances that are due for a trial first. `requests`: the pool's count of successes."""
        self._ready[:0] = [one for one in self._hot if _on_trial(one, requests, now_ns)]


def _mark_hot(chosen: list[Instance]) -> float:
    """Set `hot` of each instance; return the median of the known latencies, at least 1 us."""
    latencies = sorted(one.latency_us for one in chosen if one.known)
    median_us = max(1.0, latencies[(len(latencies) - 1) // 2] if latencies else 1.0)
    for one in chosen:
        limit_us = (COLD if one.hot else HOT) * median_us + SCATTER_US
        one.hot = one.known and one.latency_us > limit_us
    return median_us


def _on_trial(hot: Instance, requests: int, now_ns: int) -> bool:
    """Whether a trial of the hot instance starts: it is first until the next tick, with one credit."""
    since_ns = now_ns - hot.tried_at_ns
    if hot.load or since_ns < TRIAL_NS:
        return False
    if since_ns < LONGEST_TRIAL_NS and requests - hot.tried_requests < TRIAL_REQUESTS:
        return False
    hot.tried_at_ns, hot.tried_requests = now_ns, requests
    hot.allow(1)
    return True
