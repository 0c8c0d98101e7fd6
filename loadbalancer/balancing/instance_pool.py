"""Selects instances for requests: late binding, fewer requests for slow and failing instances.

Pure arithmetic, the clock is an argument (monotonic ns); one proxy's view.  The protocol of use:

    pool = InstancePool(SelectionSettings(), random.Random(), now_ns)
    added, removed = pool.apply(records, now_ns)              when the controller has changed the pool
    while waiting and (instance := pool.candidates.choose(len(waiting))):    after a push, an end, and a tick
        pool.started(instance); send(waiting.pop(), instance) a new request: choose() if none waits
    pool.finished(instance, now_ns, latency_us, status)       each started request ends in exactly one of
    pool.failed(instance, now_ns)                             these: complete; broken or no response;
    pool.connect_failed(instance, now_ns, refused)            no connection;
    pool.cancelled(instance, now_ns, late)                    disconnected, or predict_timeout (late)
    pool.candidates.another(instance)                         for a retry, if the budget allows one
    pool.tick(now_ns)                                         every 20 ms; instance.show(cell) follows
    if not pool.candidates.usable: 503 at once                no instance may get a free credit
    for instance in pool.unreachable():                       every 250 ms: connect without a request;
        pool.reachable(instance, now_ns)                      if that succeeds

An instance without free credits is not chosen: the request stays queued and unbound until an instance has a
free credit.  Of the instances with free credits, the one with the least load is chosen, then the one with the
lowest recent latency, then a random one.  A *hot* instance, slower than twice the pool's median, is chosen
only if the queue is so long that waiting for the others would take longer, and periodically for a trial.
Failures count as slow responses.  Order and credits are computed once per tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from twofold.loadbalancer.balancing.candidates import SECOND_NS, Candidates, SelectionSettings
from twofold.loadbalancer.balancing.instance import WEIGHT, Instance
from twofold.loadbalancer.balancing.outlier_detection import Failure, may_eject
from twofold.loadbalancer.endpoint_record import DRAIN, EndpointRecord

PENALTY = 8  # a failure counts as this multiple of the typical latency
FLOW_SMOOTHING_NS = SECOND_NS // 2


class InstancePool:
    """`instances`: by name, as the controller published them; `candidates`: those that may be chosen."""

    def __init__(self, settings: SelectionSettings, random: Random, now_ns: int) -> None:
        self.instances: dict[str, Instance] = {}
        self.candidates = Candidates(settings, random)
        self.typical_us = 0.0  # latency of successes, all instances together
        self.flow = 0.0  # successes per second
        self._ticked_ns = now_ns
        self._requests = 0

    # ------------------------------------------------------------------ requests

    def started(self, instance: Instance) -> None:
        instance.load += instance.step
        instance.requests += 1

    def finished(self, instance: Instance, now_ns: int, latency_us: int, status: int) -> None:
        """A complete response has arrived; a 5xx counts as a failure."""
        if status >= 500:
            self._failure(instance, now_ns, Failure.ANSWER, latency_us)
            return
        instance.load -= instance.step
        instance.latency_sum_us += latency_us
        instance.latency_us += (latency_us - instance.latency_us) * WEIGHT
        if instance.suspected and not instance.outliers.out:  # requests from before an ejection do not end it
            self.acquit(instance, now_ns)

    # ------------------------------------------------------------------ other endings

    def failed(self, instance: Instance, now_ns: int) -> None:
        """The response was invalid or incomplete, or the connection closed before it."""
        self._failure(instance, now_ns, Failure.BROKEN)

    def connect_failed(self, instance: Instance, now_ns: int, refused: bool) -> None:
        self._failure(instance, now_ns, Failure.REFUSED if refused else Failure.CONNECT)

    def cancelled(self, instance: Instance, now_ns: int, late: bool) -> None:
        """The client disconnected, which is no failure; or predict_timeout expired (`late`), which is one."""
        if late:
            self._failure(instance, now_ns, Failure.LATE)
        else:
            instance.lose(0)

    # ------------------------------------------------------------------ ejection

    def unreachable(self) -> list[Instance]:
        """The instances that are ejected because they could not be connected to."""
        return [one for one in self._members() if one.outliers.out and one.outliers.unreachable]

    def reachable(self, instance: Instance, now_ns: int) -> None:
        """The instance accepted a connection: it returns at once, with slow start."""
        if instance.outliers.unreachable:
            self.acquit(instance, now_ns)
            self._arrange(now_ns)

    def _failure(self, instance: Instance, now_ns: int, failure: Failure, latency_us: int = 0) -> None:
        instance.lose(latency_us)
        instance.failures[failure] += 1
        instance.suspected = True
        unreachable = failure in (Failure.CONNECT, Failure.REFUSED)
        if not unreachable:
            instance.charge(max(latency_us, PENALTY * self.typical_us))
        self.candidates.put_last(instance)
        record = instance.outliers
        if record.out or not record.condemns(failure):
            return
        if unreachable or self._can_spare(instance):
            record.eject(now_ns, unreachable)
            self._arrange(now_ns)

    def _can_spare(self, instance: Instance) -> bool:
        members = self._members()
        serving = [one.outliers for one in members if one is not instance and one.serving]
        return may_eject(serving, len(members))

    def acquit(self, instance: Instance, now_ns: int) -> None:
        """Clear the instance's outlier record; begin slow start if it was out or on trial."""
        instance.suspected = False
        if instance.outliers.acquit():
            instance.ramp_from_ns = now_ns

    # ------------------------------------------------------------------ the endpoint table, and ticks

    def apply(self, records: Sequence[EndpointRecord], now_ns: int) -> tuple[list[Instance], list[Instance]]:
        """Apply the controller's records; (added instances, removed instances).

        Requests at removed instances end as usual; their cells may have been reassigned already.
        """
        before, self.instances, added = self.instances, {}, []
        for record in records:
            instance = before.pop(record.name, None)
            if instance is None:
                instance = Instance(record, now_ns)
                added.append(instance)
            else:
                instance.adopt(record)
                since_ns = record.since_ns
                if since_ns > instance.since_ns:  # probes have found it healthy again
                    instance.since_ns = instance.ramp_from_ns = since_ns
                    self.acquit(instance, since_ns)
                    instance.latency_us = self.typical_us  # the old latency includes timeouts
            self.instances[instance.name] = instance
        self._arrange(now_ns)
        return added, list(before.values())

    def tick(self, now_ns: int) -> None:
        """Update rates, latencies, order and credits; called every 20 ms."""
        count = total = 0
        for instance in self.instances.values():
            instance.measure(now_ns, self.typical_us)
            count += instance.newly
            total += instance.newly_sum_us
        elapsed_ns = now_ns - self._ticked_ns
        self._ticked_ns = now_ns
        if count:
            share = count / (count + 32) if self.typical_us else 1.0
            self.typical_us += (total / count - self.typical_us) * share
        if elapsed_ns > 0:
            self.flow += (
                (count * SECOND_NS / elapsed_ns - self.flow) * elapsed_ns / (elapsed_ns + FLOW_SMOOTHING_NS)
            )
        self._requests += count
        self._arrange(now_ns)

    def _members(self) -> list[Instance]:
        """The instances that do not drain."""
        return [one for one in self.instances.values() if one.state != DRAIN]

    def _arrange(self, now_ns: int) -> None:
        self.candidates.arrange(self._members(), now_ns, self.flow, self.typical_us)
        self.candidates.try_hot(self._requests, now_ns)
