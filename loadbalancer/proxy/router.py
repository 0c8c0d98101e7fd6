"""Which instance gets which request: the pool, the queue before it, and what follows a failure.

Touches the links to the instances.  Which one is best, when one is ejected and how long a request
may wait is arithmetic in pool, outlier, budget and waiting.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.balancing.instance import Instance
from twofold.loadbalancer.balancing.retry_budget import RetryBudget
from twofold.loadbalancer.balancing.selection import InstancePool
from twofold.loadbalancer.balancing.wait_queue import WaitQueue
from twofold.loadbalancer.http.error_responses import LOST, down, queue_full
from twofold.loadbalancer.proxy.client import ASKED
from twofold.loadbalancer.proxy.journal import waited
from twofold.loadbalancer.proxy.upstream_pool import UpstreamPool
from twofold.wire.refusal import Refusal

if TYPE_CHECKING:
    from twofold.loadbalancer.proxy.client import Client
    from twofold.loadbalancer.proxy.process import Proxy

MB = 1 << 20


class Router:
    def __init__(self, proxy: Proxy, pool: InstancePool) -> None:
        settings = proxy.config.queue
        self.proxy = proxy
        self.pool = pool
        self.waiting: WaitQueue[Client] = WaitQueue(
            settings.queue_size, int(settings.queue_mb * MB), int(settings.queue_wait * 1e9)
        )
        self.budget = RetryBudget(monotonic_ns())
        self.deadline_ns = int(proxy.config.timeouts.predict_timeout * 1e9)
        self.may_retry = proxy.config.pool.retry == "once"
        self.queued = self.waiting.entries  # empty or not, without a call
        self._settles = False
        self._trying: dict[str, asyncio.Task[None]] = {}

    def assign(self, client: Client, now: int) -> None:
        """To the best instance that has room, otherwise into the queue, otherwise 503."""
        self.budget.requests += 1
        instance = None if self.queued else self.pool.choose()
        if instance is None:
            self._enqueue(client, now)
            return
        link: UpstreamPool = instance.link
        idle = link.idle
        if not idle or not idle[-1].transport.reading:
            link.hand(client, now)
            return
        # The hot path: InstancePool.started, UpstreamPool.hand, Upstream.ask and Client.hand_over at once.
        instance.load += instance.step
        instance.requests += 1
        client.link, client.state = link, ASKED
        client.upstream = upstream = idle.pop()
        upstream.take(client, now)

    def assign_upload(self, client: Client, now: int) -> None:
        """Likewise, while its body is still to come."""
        self.budget.requests += 1
        instance = None if self.queued else self.pool.choose_for_upload()
        if instance is None:
            self._enqueue(client, now)
        else:
            instance.link.hand(client, now)

    def _enqueue(self, client: Client, now: int) -> None:
        cells = self.proxy.cells
        if not self.pool.usable:
            cells[shared_memory.REFUSED_DOWN] += 1
            client.cut_off(down())
        elif not self.waiting.push(client, client.plan.length, now, client.started + self.deadline_ns):
            cells[shared_memory.REFUSED_QUEUE] += 1
            client.cut_off(queue_full(self.waiting.retry_after()))
        else:
            self.dispatch(now)

    def dispatch(self, now: int) -> None:
        """Somebody may have room again: the oldest first."""
        while self.queued:
            instance = self.pool.choose(len(self.queued))
            if instance is None:
                return
            client = self.waiting.pop()
            if client is not None:
                # It may have come since `now`: the next of a pipeline, when the last has ended.
                waited(self.proxy.cells, shared_memory.QUEUE, max(0, now - self.waiting.since) // 1000)
                instance.link.hand(client, now)

    def retry(self, client: Client, failed: Instance, now: int) -> None:
        """Its instance has not begun the work: another one, once, while the budget lasts."""
        cells = self.proxy.cells
        again = client.retried == client.started
        client.retried = client.started
        another = self.pool.another(failed)
        if another is None:
            cells[shared_memory.REFUSED_DOWN] += 1
            client.cut_off(down())
        elif not self.may_retry or again or not self.budget.take(now):
            cells[shared_memory.RETRY_DENIED] += 1
            client.cut_off(LOST)
        else:
            cells[shared_memory.RETRIED] += 1
            another.retries += 1
            another.link.hand(client, now)

    def forget(self, client: Client) -> None:
        """The client has left while it waited."""
        self.waiting.cancel(client)

    def give_up(self, client: Client, refusal: Refusal, blamed: bool = False) -> None:
        """Its time is over, wherever it is; is its instance to blame?"""
        if client.link is not None:
            client.link.cancel(client, late=blamed)
        else:
            self.forget(client)
        client.cut_off(refusal)

    # ------------------------------------------------------------------ membership

    def apply(self, instances: list[dict[str, Any]], now: int) -> None:
        """The controller's board has changed."""
        added, removed = self.pool.apply(instances, now)
        for instance in added:
            instance.link = UpstreamPool(self.proxy, self.pool, instance)
        for instance in removed:
            instance.link.close()
        self.dispatch(now)

    def tick(self, now: int) -> None:
        """Every 20 ms; what only needs to follow the load, every other time."""
        self._settles = not self._settles
        if self._settles:
            self.pool.tick(now)
            for instance in self.pool.instances.values():
                instance.show(self.proxy.cell(instance.cell))
        self.budget.tick(now)
        for client in self.waiting.tick(now):
            self.proxy.cells[shared_memory.REFUSED_QUEUE] += 1
            client.cut_off(queue_full(self.waiting.retry_after()))
        while self.queued and not self.pool.usable:
            gone = self.waiting.pop()
            self.proxy.cells[shared_memory.REFUSED_DOWN] += 1
            if gone is not None:
                gone.cut_off(down())
        self.dispatch(now)

    def try_unreachable(self) -> None:
        """Every 250 ms: a bare connect tells whether an instance is back, and risks no request."""
        for instance in self.pool.unreachable():
            if instance.name not in self._trying:
                task = asyncio.get_running_loop().create_task(self._try(instance))
                self._trying[instance.name] = task

    async def _try(self, instance: Instance) -> None:
        try:
            if await instance.link.reach():
                now = monotonic_ns()
                self.pool.reachable(instance, now)
                self.dispatch(now)
        finally:
            del self._trying[instance.name]

    def prune(self) -> None:
        """Once a second."""
        limit = self.proxy.config.timeouts.upstream_idle
        for instance in self.pool.instances.values():
            instance.link.prune(self.proxy.now, limit)

    def close(self) -> None:
        for instance in self.pool.instances.values():
            instance.link.close()
