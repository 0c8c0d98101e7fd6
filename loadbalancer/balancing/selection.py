"""Which instance gets a request: late binding, and what is held back from the slow and the failing.

Pure arithmetic, the clock is an argument (monotonic ns); one proxy's view.  The protocol of use:

    pool = InstancePool(SelectionSettings(), random.Random(), now)
    added, removed = pool.apply(board["instances"], now)          whenever the board has changed
    while waiting and (instance := pool.choose(len(waiting))):    after a push, an ending, and a tick
        pool.started(instance); send(waiting.pop(), instance)     a new request: choose() if none waits
    pool.finished(instance, now, latency_us, status)              each started request ends in exactly one of
    pool.failed(instance, now)                                    these: a whole answer; broken, or none;
    pool.connect_failed(instance, now, refused)                   no connection;
    pool.cancelled(instance, now, late)                           client gone, or predict_timeout (late)
    pool.another(instance)                                        for a second attempt, if the budget allows
    pool.tick(now)                                                every 20 ms; instance.show(cell) follows
    if not pool.usable: 503 at once                               nobody to wait for
    for instance in pool.unreachable():                           every 250 ms: try to connect, no request;
        pool.reachable(instance, now)                             when that succeeds

An instance without free credits is not chosen: the request stays in the queue, bound to nobody, until
somebody has room.  Among those with credits the least busy one is, then the one with the lowest recent
latency, then any.  A *hot* one, slower than twice the pool's median, is asked only when the queue is so
long that waiting for the others would take longer, and now and then for a trial.  Failures count as
slow.  What costs time is settled once per tick and leaves `choose` one short loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from twofold.loadbalancer.balancing.instance import WEIGHT, Instance
from twofold.loadbalancer.balancing.outlier_detection import Failure, may_eject

SECOND = 1_000_000_000
FULL: Final = 1 << 62  # more than any load
HOT, COLD = 2.0, 1.5  # times the median: above the first one becomes hot, below the other cold again
SCATTER_US = 500  # differences below say nothing
PENALTY = 8  # times what is typical: how slow a failure counts
PATIENCE = SECOND // 4  # the longest that the queue waits for the cold ones while a hot one has room
TRIAL = SECOND  # between two trials of a hot instance
TRIAL_REQUESTS = 250  # and so many requests, or its latency would show in the pool's p99
LONGEST_TRIAL = 10 * SECOND
FLOW_SMOOTHING = SECOND // 2
DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    credits: int = 0  # for each instance; 0: from its workers and its pace
    slow_start: int = 5 * SECOND
    panic_percent: int = 50
    proxies: int = 1  # that share the instances' credits


class InstancePool:
    """`instances` by name, as the board has them now."""

    def __init__(self, settings: SelectionSettings, random: Random, now: int) -> None:
        self.settings = settings
        self.instances: dict[str, Instance] = {}
        self.panic = False
        self.typical_us = 0.0  # latency of successes, all instances together
        self.flow = 0.0  # successes per second
        self._random = random
        self._ticked = now
        self._requests = 0
        self._ready: list[Instance] = []  # in order of preference among the equally busy
        self._hot: list[Instance] = []
        self._patience = FULL  # requests waiting for which the hot ones are worth asking

    @property
    def usable(self) -> bool:
        """Whether there is anybody to wait for."""
        return bool(self._ready)

    # ------------------------------------------------------------------ the hot path

    def choose(self, waiting: int = 0) -> Instance | None:
        """Who should get the next request, while so many wait (itself included); None: let it wait."""
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
        """Nobody has room as a rule; a queue may be so long that waiting for them is no better."""
        roomy: list[Instance] = []
        if waiting >= len(self._ready):
            roomy = [one for one in self._ready if one.load < one.full]
        if not roomy and waiting >= self._patience:
            roomy = [one for one in self._hot if one.load < one.limit]
        return min(roomy, key=lambda one: one.load, default=None)

    def choose_for_upload(self) -> Instance | None:
        """Likewise, for a request whose body is still to come: it will be a while before it is work."""
        roomy = [one for one in self._ready if one.load < one.limit]
        return min(roomy, key=lambda one: (one.apart, one.load), default=None)

    def started(self, instance: Instance) -> None:
        instance.load += instance.step
        instance.requests += 1

    def finished(self, instance: Instance, now: int, latency_us: int, status: int) -> None:
        """A whole answer has come."""
        if status >= 500:
            self._failure(instance, now, Failure.ANSWER, latency_us)
            return
        instance.load -= instance.step
        instance.latency_sum_us += latency_us
        instance.latency_us += (latency_us - instance.latency_us) * WEIGHT
        if instance.suspected and not instance.record.out:  # what it had in hand does not bring it back
            self.acquit(instance, now)

    # ------------------------------------------------------------------ other endings

    def failed(self, instance: Instance, now: int) -> None:
        """No HTTP came, or an answer that broke off, or the connection closed before any."""
        self._failure(instance, now, Failure.BROKEN)

    def connect_failed(self, instance: Instance, now: int, refused: bool) -> None:
        self._failure(instance, now, Failure.REFUSED if refused else Failure.CONNECT)

    def cancelled(self, instance: Instance, now: int, late: bool) -> None:
        """The client has left, which says nothing; or the time was up (`late`)."""
        if late:
            self._failure(instance, now, Failure.LATE)
        else:
            instance.lose(0)

    def another(self, instance: Instance) -> Instance | None:
        """Somebody else, for a second attempt: beyond its credits if need be, for there are few."""
        others = [one for one in self._ready if one is not instance and not one.record.on_trial]
        others = others or [one for one in self._hot if one is not instance]
        return min(others, key=lambda one: one.load, default=None)

    # ------------------------------------------------------------------ ejection

    def unreachable(self) -> list[Instance]:
        """Those that took no connection and are out for it: a bare connect tells when they are back."""
        return [one for one in self._members() if one.record.out and one.record.unreachable]

    def reachable(self, instance: Instance, now: int) -> None:
        """It took a connection: back at once, with few credits."""
        if instance.record.unreachable:
            self.acquit(instance, now)
            self._arrange(now)

    def _failure(self, instance: Instance, now: int, failure: Failure, latency_us: int = 0) -> None:
        instance.lose(latency_us)
        instance.failures[failure] += 1
        instance.suspected = True
        unreachable = failure in (Failure.CONNECT, Failure.REFUSED)
        if not unreachable:
            instance.charge(max(latency_us, PENALTY * self.typical_us))
        self._put_last(instance)
        record = instance.record
        if record.out or not record.condemns(failure):
            return
        if unreachable or self._can_spare(instance):
            record.eject(now, unreachable)
            self._arrange(now)

    def _put_last(self, instance: Instance) -> None:
        """Until the next tick: a caller whose every request fails must meet all of the pool, not one."""
        if instance in self._ready:
            self._ready.remove(instance)
            self._ready.append(instance)

    def _can_spare(self, instance: Instance) -> bool:
        members = self._members()
        serving = [one.record for one in members if one is not instance and one.serving]
        return may_eject(serving, len(members))

    def acquit(self, instance: Instance, now: int) -> None:
        """A success ends what is held against it."""
        instance.suspected = False
        if instance.record.acquit():
            instance.ramp_from = now

    # ------------------------------------------------------------------ the board, and ticks

    def apply(self, entries: Sequence[Mapping[str, Any]], now: int) -> tuple[list[Instance], list[Instance]]:
        """Take over the controller's decisions; who is new, and who is gone.

        Requests of those that are gone end as usual; their cells may belong to others already.
        """
        before, self.instances, added = self.instances, {}, []
        for entry in entries:
            instance = before.pop(entry["name"], None)
            if instance is None:
                instance = Instance(entry, now)
                added.append(instance)
            else:
                instance.adopt(entry)
                since = int(entry.get("since_ns", 0))
                if since > instance.since_ns:  # probes have found it well again
                    instance.since_ns = instance.ramp_from = since
                    self.acquit(instance, since)
                    instance.latency_us = self.typical_us  # of what hung while it was away
            self.instances[instance.name] = instance
        self._arrange(now)
        return added, list(before.values())

    def tick(self, now: int) -> None:
        """Settle everything that changes with time."""
        count = total = 0
        for instance in self.instances.values():
            instance.measure(now, self.typical_us)
            count += instance.newly
            total += instance.newly_sum_us
        elapsed = now - self._ticked
        self._ticked = now
        if count:
            share = count / (count + 32) if self.typical_us else 1.0
            self.typical_us += (total / count - self.typical_us) * share
        if elapsed > 0:
            self.flow += (count * SECOND / elapsed - self.flow) * elapsed / (elapsed + FLOW_SMOOTHING)
        self._requests += count
        self._arrange(now)

    def _members(self) -> list[Instance]:
        """Those that are meant to serve."""
        return [one for one in self.instances.values() if one.state != DRAIN]

    def _arrange(self, now: int) -> None:
        """Who may be chosen, in which order, and how much each may be given."""
        members = self._members()
        for one in members:
            one.suspected = one.record.expire(now) or one.suspected
        chosen = [one for one in members if one.serving]
        self.panic = len(chosen) * 100 < self.settings.panic_percent * len(members)
        if self.panic:
            chosen = [one for one in members if not (one.record.out and one.record.unreachable)]
        median = self._heat(chosen)
        self._grant(chosen, now)
        self._random.shuffle(chosen)
        ready = [one for one in chosen if not one.hot]
        ready.sort(key=lambda one: round(4 * math.log2(max(one.latency_us, 1.0) / median)))
        self._hot = [one for one in chosen if one.hot]
        trials = [one for one in self._hot if self._try(one, now)]
        self._ready = trials + ready
        gap_us = min((one.latency_us for one in self._hot), default=0.0) - self.typical_us
        patience = self.flow * min(gap_us * 1000, PATIENCE) / SECOND
        self._patience = max(1, math.ceil(patience)) if self._hot else FULL

    def _heat(self, chosen: list[Instance]) -> float:
        """Say who is hot; the median latency of those who are known, at least 1."""
        latencies = sorted(one.latency_us for one in chosen if one.known)
        median = max(1.0, latencies[(len(latencies) - 1) // 2] if latencies else 1.0)
        for one in chosen:
            limit = (COLD if one.hot else HOT) * median + SCATTER_US
            one.hot = one.known and one.latency_us > limit
        return median

    def _grant(self, chosen: list[Instance], now: int) -> None:
        settings = self.settings
        # While all of them are new there is nobody to spare them for: their workers are kept busy.
        spared = any(now - one.ramp_from >= settings.slow_start or not one.ramp_from for one in chosen)
        for one in chosen:
            ramp = (now - one.ramp_from) / settings.slow_start if one.ramp_from else 1.0
            one.grant(settings.credits, settings.proxies, min(1.0, max(ramp, 0.0)))
            if not spared and one.credits < one.workers:
                one.allow(one.workers)
            if one.record.on_trial:
                one.allow(1)

    def _try(self, hot: Instance, now: int) -> bool:
        """Whether the hot one gets a request before others until the next tick, one at a time."""
        since = now - hot.tried_at
        if hot.load or since < TRIAL:
            return False
        if since < LONGEST_TRIAL and self._requests - hot.tried_requests < TRIAL_REQUESTS:
            return False
        hot.tried_at, hot.tried_requests = now, self._requests
        hot.allow(1)
        return True
