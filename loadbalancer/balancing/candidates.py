"""Which instances may be chosen, in which order, and how much each may be given.

Pure arithmetic, the clock is an argument (monotonic ns).  `arrange` settles once per tick what costs time,
which leaves `choose` one short loop.
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
HOT, COLD = 2.0, 1.5  # times the median: above the first an instance becomes hot, below the other cold again
SCATTER_US = 500  # differences below say nothing
LONGEST_PATIENCE_NS = SECOND_NS // 4  # that the queue waits for the cold ones while a hot one has room
TRIAL_NS = SECOND_NS  # between two trials of a hot instance
TRIAL_REQUESTS = 250  # between two trials, or the latency of trials would show in the pool's p99
LONGEST_TRIAL_NS = 10 * SECOND_NS


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    credits: int = 0  # for each instance; 0: from its workers and its pace
    slow_start: int = 5 * SECOND_NS
    panic_percent: int = 50
    proxies: int = 1  # that share the instances' credits


class Candidates:
    """`panic`: so few instances serve that ejected ones are chosen as well."""

    __slots__ = ("_hot", "_patience", "_random", "_ready", "panic", "settings")

    def __init__(self, settings: SelectionSettings, random: Random) -> None:
        self.settings = settings
        self.panic = False
        self._random = random
        self._ready: list[Instance] = []  # in order of preference among the equally busy
        self._hot: list[Instance] = []
        self._patience = FULL  # requests waiting for which the hot ones are worth asking

    @property
    def usable(self) -> bool:
        """Whether there is an instance to wait for."""
        return bool(self._ready)

    # ------------------------------------------------------------------ the hot path

    def choose(self, waiting: int = 0) -> Instance | None:
        """The instance for the next request, while `waiting` wait, it included; None: let it wait."""
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
        """No instance has room as a rule; a queue may be so long that waiting for them is no better."""
        roomy: list[Instance] = []
        if waiting >= len(self._ready):
            roomy = [one for one in self._ready if one.load < one.full]
        if not roomy and waiting >= self._patience:
            roomy = [one for one in self._hot if one.load < one.limit]
        return min(roomy, key=lambda one: one.load, default=None)

    def choose_for_upload(self) -> Instance | None:
        """As `choose`, for a request whose body is still to come: it will be a while before it is work."""
        roomy = [one for one in self._ready if one.load < one.limit]
        return min(roomy, key=lambda one: (one.apart, one.load), default=None)

    def another(self, instance: Instance) -> Instance | None:
        """One for a second attempt: beyond its credits if need be, for second attempts are few."""
        others = [one for one in self._ready if one is not instance and not one.outliers.on_trial]
        others = others or [one for one in self._hot if one is not instance]
        return min(others, key=lambda one: one.load, default=None)

    def put_last(self, instance: Instance) -> None:
        """Until the next tick: a caller whose every request fails must meet all of the pool, not one."""
        if instance in self._ready:
            self._ready.remove(instance)
            self._ready.append(instance)

    # ------------------------------------------------------------------ ticks

    def arrange(self, members: Sequence[Instance], now_ns: int, flow: float, typical_us: float) -> None:
        """`flow`: successes per second; `typical_us`: their latency, all instances together."""
        for one in members:
            one.suspected = one.outliers.expire(now_ns) or one.suspected
        chosen = [one for one in members if one.serving]
        self.panic = len(chosen) * 100 < self.settings.panic_percent * len(members)
        if self.panic:
            chosen = [one for one in members if not (one.outliers.out and one.outliers.unreachable)]
        median_us = _heat(chosen)
        self._grant(chosen, now_ns)
        self._random.shuffle(chosen)
        ready = [one for one in chosen if not one.hot]
        ready.sort(key=lambda one: round(4 * math.log2(max(one.latency_us, 1.0) / median_us)))
        self._hot = [one for one in chosen if one.hot]
        self._ready = ready
        gap_us = min((one.latency_us for one in self._hot), default=0.0) - typical_us
        # Requests that the cold ones complete while a hot one would work on one.
        patience = flow * min(gap_us * 1000, LONGEST_PATIENCE_NS) / SECOND_NS
        self._patience = max(1, math.ceil(patience)) if self._hot else FULL

    def _grant(self, chosen: list[Instance], now_ns: int) -> None:
        """credits = 1 + (fixed or measured - 1) * ramp, where ramp grows from 0 to 1 in slow_start."""
        settings = self.settings
        # While all of them are new there is none to spare them for: their workers are kept busy.
        spared = any(
            now_ns - one.ramp_from_ns >= settings.slow_start or not one.ramp_from_ns for one in chosen
        )
        for one in chosen:
            ramp = (now_ns - one.ramp_from_ns) / settings.slow_start if one.ramp_from_ns else 1.0
            one.grant(settings.credits, settings.proxies, min(1.0, max(ramp, 0.0)))
            if not spared and one.credits < one.workers:
                one.allow(one.workers)
            if one.outliers.on_trial:
                one.allow(1)

    def try_hot(self, requests: int, now_ns: int) -> None:
        """Put hot instances that are due for a trial before all others; `requests` is the pool's count."""
        self._ready[:0] = [one for one in self._hot if _on_trial(one, requests, now_ns)]


def _heat(chosen: list[Instance]) -> float:
    """Mark the hot ones; the median latency of those that are known, at least 1 us."""
    latencies = sorted(one.latency_us for one in chosen if one.known)
    median_us = max(1.0, latencies[(len(latencies) - 1) // 2] if latencies else 1.0)
    for one in chosen:
        limit_us = (COLD if one.hot else HOT) * median_us + SCATTER_US
        one.hot = one.known and one.latency_us > limit_us
    return median_us


def _on_trial(hot: Instance, requests: int, now_ns: int) -> bool:
    """Whether the hot one gets a request before others until the next tick, one at a time."""
    since_ns = now_ns - hot.tried_at_ns
    if hot.load or since_ns < TRIAL_NS:
        return False
    if since_ns < LONGEST_TRIAL_NS and requests - hot.tried_requests < TRIAL_REQUESTS:
        return False
    hot.tried_at_ns, hot.tried_requests = now_ns, requests
    hot.allow(1)
    return True
