"""Assigns requests to instances: selection, wait queue, retries after a failure.

Touches the connections to the instances.  Selection, ejection and queueing limits are computed in
`balancing`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.balancing.instance import Instance
from twofold.loadbalancer.balancing.instance_pool import InstancePool
from twofold.loadbalancer.balancing.retry_budget import RetryBudget
from twofold.loadbalancer.balancing.wait_queue import WaitQueue
from twofold.loadbalancer.http.error_responses import (
    BAD_ANSWER,
    CONNECTION_LIMITED,
    CONNECTION_LOST,
    down,
    queue_full,
)
from twofold.loadbalancer.proxy import exchange as outcomes
from twofold.loadbalancer.proxy.exchange import Exchange, Owner
from twofold.loadbalancer.proxy.upstream_pool import UpstreamPool
from twofold.telemetry.histograms import observe
from twofold.wire.refusal import Refusal

if TYPE_CHECKING:
    from twofold.loadbalancer.endpoint_record import EndpointRecord
    from twofold.loadbalancer.proxy.services import Services
    from twofold.reactor.reactor import Reactor

MB = 1 << 20


class Router(Owner):
    """`queued`: the queue's entries, so that emptiness is tested without a call."""

    def __init__(self, services: Services, reactor: Reactor, instances: InstancePool) -> None:
        settings = services.config.queue
        self.instances = instances
        self.waiting: WaitQueue[Exchange] = WaitQueue(
            settings.queue_size, int(settings.queue_mb * MB), int(settings.queue_wait * 1e9)
        )
        self.queued = self.waiting.entries
        self._services = services
        self._cells = services.cells
        self._reactor = reactor
        self._budget = RetryBudget(monotonic_ns())
        self._deadline_ns = int(services.config.timeouts.predict_timeout * 1e9)
        self._may_retry = services.config.pool.retry == "once"
        self._connecting: dict[str, asyncio.Task[None]] = {}

    def assign(self, exchange: Exchange, now_ns: int) -> None:
        """Send to the best instance with a free credit, else queue, else refuse with 503."""
        self._budget.requests += 1
        instance = None if self.queued else self.instances.candidates.choose()
        if instance is None:
            self._enqueue(exchange, now_ns)
        else:
            self._send(exchange, instance, now_ns)

    def assign_upload(self, exchange: Exchange, now_ns: int) -> None:
        """As `assign`, for a request whose large body has not arrived yet."""
        self._budget.requests += 1
        instance = None if self.queued else self.instances.candidates.choose_for_upload()
        if instance is None:
            self._enqueue(exchange, now_ns)
        else:
            self._send(exchange, instance, now_ns)

    def _send(self, exchange: Exchange, instance: Instance, now_ns: int) -> None:
        exchange.acquire(instance)
        self.instances.started(instance)
        pool: UpstreamPool = instance.pool
        pool.ask(exchange, now_ns)

    def _enqueue(self, exchange: Exchange, now_ns: int) -> None:
        client = exchange.downstream
        if not self.instances.candidates.usable:
            self._cells[shared_memory.REFUSED_DOWN] += 1
            client.cut_off(down())
        elif not self.waiting.push(
            exchange, client.plan.length, now_ns, client.started_ns + self._deadline_ns
        ):
            self._cells[shared_memory.REFUSED_QUEUE] += 1
            client.cut_off(queue_full(self.waiting.retry_after()))
        else:
            self.dispatch(now_ns)

    def dispatch(self, now_ns: int) -> None:
        """Send queued requests, oldest first, while an instance has a free credit."""
        while self.queued:
            instance = self.instances.candidates.choose(len(self.queued))
            if instance is None:
                return
            exchange = self.waiting.pop()
            if exchange is not None:
                # The next request of a pipeline may be younger than `now_ns`.
                observe(self._cells, shared_memory.QUEUE, max(0, now_ns - self.waiting.since_ns) // 1000)
                self._send(exchange, instance, now_ns)

    def forget(self, exchange: Exchange) -> None:
        """The client has disconnected: remove its request from the queue, if it is queued."""
        self.waiting.cancel(exchange)

    def give_up(self, exchange: Exchange, refusal: Refusal, blamed: bool = False) -> None:
        """The request has timed out, at an instance or in the queue. `blamed`: the instance is at fault."""
        if exchange.instance is not None:
            exchange.cancel(outcomes.LATE if blamed else outcomes.CANCELLED)
        else:
            self.forget(exchange)
        exchange.downstream.cut_off(refusal)

    # ------------------------------------------------------------------ the end of an exchange

    def released(
        self, exchange: Exchange, instance: Instance, outcome: int, now_ns: int, spent_us: int, status: int
    ) -> None:
        if outcome == outcomes.ANSWERED:
            self.instances.finished(instance, now_ns, spent_us, status)
            if self.queued:
                self.dispatch(now_ns)
            return
        self._count(instance, outcome, now_ns)
        client = exchange.downstream
        if outcome == outcomes.BROKEN:
            client.cut_off(BAD_ANSWER)
        elif outcome == outcomes.EXHAUSTED:
            client.cut_off(CONNECTION_LIMITED)
        elif outcome not in (outcomes.CANCELLED, outcomes.LATE):
            # Without a connection, the instance cannot have begun to process the request.
            unbegun = outcome != outcomes.LOST or client.plan.replayable
            if unbegun and client.can_replay():
                self._retry(exchange, instance, now_ns)
            else:
                client.cut_off(CONNECTION_LOST)
        self.dispatch(now_ns)

    def _count(self, instance: Instance, outcome: int, now_ns: int) -> None:
        instances = self.instances
        if outcome in (outcomes.BROKEN, outcomes.LOST):
            instances.failed(instance, now_ns)
        elif outcome in (outcomes.REFUSED, outcomes.UNREACHABLE):
            instances.connect_failed(instance, now_ns, refused=outcome == outcomes.REFUSED)
        else:
            instances.cancelled(instance, now_ns, late=outcome == outcomes.LATE)

    def _retry(self, exchange: Exchange, failed: Instance, now_ns: int) -> None:
        """Send the request to another instance: once per request, within the retry budget."""
        client = exchange.downstream
        again = exchange.retried_ns == client.started_ns
        exchange.retried_ns = client.started_ns
        another = self.instances.candidates.another(failed)
        if another is None:
            self._cells[shared_memory.REFUSED_DOWN] += 1
            client.cut_off(down())
        elif not self._may_retry or again or not self._budget.take(now_ns):
            self._cells[shared_memory.RETRY_DENIED] += 1
            client.cut_off(CONNECTION_LOST)
        else:
            self._cells[shared_memory.RETRIED] += 1
            another.retries += 1
            self._send(exchange, another, now_ns)

    def freed(self, now_ns: int) -> None:
        if self.queued:
            self.dispatch(now_ns)

    # ------------------------------------------------------------------ the pool

    def apply(self, records: Sequence[EndpointRecord], now_ns: int) -> None:
        """Apply the pool that the controller has published."""
        added, removed = self.instances.apply(records, now_ns)
        for instance in added:
            instance.pool = UpstreamPool(self._services, self._reactor, instance)
        for instance in removed:
            instance.pool.close()
        self.dispatch(now_ns)

    def tick(self, now_ns: int) -> None:
        """Every 20 ms: refuse requests that waited too long, dispatch the others."""
        self._budget.tick(now_ns)
        for exchange in self.waiting.tick(now_ns):
            self._cells[shared_memory.REFUSED_QUEUE] += 1
            exchange.downstream.cut_off(queue_full(self.waiting.retry_after()))
        while self.queued and not self.instances.candidates.usable:
            gone = self.waiting.pop()
            self._cells[shared_memory.REFUSED_DOWN] += 1
            if gone is not None:
                gone.downstream.cut_off(down())
        self.dispatch(now_ns)

    def try_unreachable(self) -> None:
        """Every 250 ms: test by a connection, without a request, whether an instance is back."""
        for instance in self.instances.unreachable():
            if instance.name not in self._connecting:
                task = asyncio.get_running_loop().create_task(self._try_connect(instance))
                self._connecting[instance.name] = task

    async def _try_connect(self, instance: Instance) -> None:
        try:
            if await instance.pool.reach():
                now_ns = monotonic_ns()
                self.instances.reachable(instance, now_ns)
                self.dispatch(now_ns)
        finally:
            del self._connecting[instance.name]

    def prune(self, now_s: float) -> None:
        """Close expired idle connections; called once a second."""
        for instance in self.instances.instances.values():
            instance.pool.prune(now_s)

    def close(self) -> None:
        for instance in self.instances.instances.values():
            instance.pool.close()
