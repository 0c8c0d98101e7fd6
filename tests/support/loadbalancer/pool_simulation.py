"""A pool in simulated time: Poisson arrivals, instances with queues of their own, a way between them.

Everything is drawn before the start from one seed, so that two policies meet the same requests.
Latencies are charged from the intended arrival, in seconds.  `Simulation` drives the real pool and
the real queue as the proxy does; `central_queue` and `round_robin` are what it is compared with.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from twofold.loadbalancer.balancing.candidates import SelectionSettings
from twofold.loadbalancer.balancing.instance import Instance
from twofold.loadbalancer.balancing.instance_pool import InstancePool
from twofold.loadbalancer.balancing.wait_queue import WaitQueue
from twofold.loadbalancer.endpoint_record import EndpointRecord

NS = 1_000_000_000
TICK = 0.02
WAY = 0.0001  # seconds from the proxy to an instance, and as long back
START = NS  # the simulated clock does not begin at 0, which means "never" in places


@dataclass(frozen=True)
class Request:
    at: float
    work: float  # seconds on a healthy worker
    number: int


def exponential(mean: float) -> Callable[[random.Random], float]:
    return lambda draw: draw.expovariate(1 / mean)


def bimodal(short: float, long: float, part: float) -> Callable[[random.Random], float]:
    """`part` of the requests are long."""
    return lambda draw: long if draw.random() < part else short


def poisson(rate: float, number: int, work: Callable[[random.Random], float], seed: int) -> list[Request]:
    """So many requests at `rate` per second."""
    draw = random.Random(seed)
    now, requests = 0.0, []
    for index in range(number):
        now += draw.expovariate(rate)
        requests.append(Request(now, work(draw), index))
    return requests


def percentile(latencies: list[float], part: float) -> float:
    return sorted(latencies)[min(len(latencies) - 1, int(part * len(latencies)))]


def central_queue(requests: list[Request], workers: int) -> list[float]:
    """One queue before all workers, none of which ever waits for the way: what no policy can beat."""
    free = [0.0] * workers
    latencies = []
    for request in requests:
        begin = max(request.at, heapq.heappop(free))
        heapq.heappush(free, begin + request.work)
        latencies.append(begin + request.work - request.at + 2 * WAY)
    return latencies


def round_robin(requests: list[Request], instances: int, workers: int) -> list[float]:
    """Request i goes to instance i mod n at once."""
    latencies: list[float] = [0.0] * len(requests)
    for first in range(instances):
        own = requests[first::instances]
        for request, latency in zip(own, central_queue(own, workers), strict=True):
            latencies[request.number] = latency
    return latencies


@dataclass
class Server:
    """An instance behind the way: workers, a queue, and its faults. `slow` may be a factor per time."""

    workers: int
    slow: Callable[[float], float] = lambda now: 1.0
    fails: Callable[[float], bool] = lambda now: False
    hangs: Callable[[float], bool] = lambda now: False
    refuses: Callable[[float], bool] = lambda now: False
    busy: int = 0
    queue: deque[Request] = field(default_factory=deque)


@dataclass
class Outcome:
    latencies: list[float] = field(default_factory=list)  # of those that were answered well, by arrival
    arrivals: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)  # when
    refused: int = 0
    attempts: int = 0
    chosen: dict[str, int] = field(default_factory=dict)


class Simulation:
    """One proxy before `servers`, named "0", "1", ... in its endpoint table."""

    way = WAY
    deadline = 0.5  # of a request that hangs

    def __init__(self, servers: list[Server], seed: int, settings: SelectionSettings | None = None) -> None:
        self.servers = servers
        self.outcome = Outcome(chosen={str(number): 0 for number in range(len(servers))})
        self.pool = InstancePool(settings or SelectionSettings(), random.Random(seed), START)
        self.waiting: WaitQueue[Request] = WaitQueue(count=1 << 20, wait_ns=60 * NS)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = count()
        self._sent: dict[int, float] = {}
        self.pool.apply([self.entry(number) for number in range(len(servers))], self.clock)

    def entry(self, number: int, state: str = "up", since: int = 0) -> EndpointRecord:
        workers = self.servers[number].workers
        return EndpointRecord(str(number), number, state, workers, since)

    @property
    def clock(self) -> int:
        return START + int(self.now * NS)

    def after(self, delay: float, action: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), action, arguments))

    def run(self, requests: list[Request]) -> Outcome:
        """Until every request has ended."""
        self.after(TICK, self._tick)
        self.run_on(requests)
        return self.outcome

    def run_on(self, requests: list[Request]) -> None:
        """The same pool, later requests."""
        goal = self.ended + len(requests)
        for request in requests:
            heapq.heappush(self._events, (request.at, next(self._order), self._arrive, (request,)))
        while self.ended < goal:
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)

    @property
    def ended(self) -> int:
        return len(self.outcome.latencies) + len(self.outcome.errors) + self.outcome.refused

    # ------------------------------------------------------------------ the proxy

    def _arrive(self, request: Request) -> None:
        if not self.pool.candidates.usable:
            self.outcome.refused += 1
        elif not self.waiting and (instance := self.pool.candidates.choose()):
            self._send(request, instance)
        elif self.waiting.push(request, 1000, self.clock, self.clock + 60 * NS):
            self._dispatch()
        else:
            self.outcome.refused += 1

    def _dispatch(self) -> None:
        while self.waiting and (instance := self.pool.candidates.choose(len(self.waiting))):
            request = self.waiting.pop()
            assert request is not None
            self._send(request, instance)

    def _send(self, request: Request, instance: Instance) -> None:
        self.pool.started(instance)
        self.outcome.attempts += 1
        self.outcome.chosen[instance.name] += 1
        self._sent[request.number] = self.now
        server = self.servers[int(instance.name)]
        if server.refuses(self.now):
            self.after(self.way, self._refused, request, instance)
        else:
            self.after(self.way, self._reach, request, instance, server)

    def _refused(self, request: Request, instance: Instance) -> None:
        self.pool.connect_failed(instance, self.clock, True)
        other = self.pool.candidates.another(instance)
        if other is None:
            self.outcome.refused += 1
        else:
            self._send(request, other)
        self._dispatch()

    def _answered(self, request: Request, instance: Instance, well: bool) -> None:
        latency = int((self.now - self._sent.pop(request.number)) * 1e6)
        self.pool.finished(instance, self.clock, latency, 200 if well else 500)
        if well:
            self.outcome.latencies.append(self.now - request.at)
            self.outcome.arrivals.append(request.at)
        else:
            self.outcome.errors.append(self.now)
        self._dispatch()

    def _late(self, request: Request, instance: Instance) -> None:
        self.pool.cancelled(instance, self.clock, True)
        self.outcome.errors.append(self.now)
        self._dispatch()

    def _tick(self) -> None:
        self.pool.tick(self.clock)
        for request in self.waiting.tick(self.clock):
            del request
            self.outcome.refused += 1
        for instance in self.pool.unreachable():
            if not self.servers[int(instance.name)].refuses(self.now):
                self.pool.reachable(instance, self.clock)
        self._dispatch()
        self.after(TICK, self._tick)

    # ------------------------------------------------------------------ the instances

    def _reach(self, request: Request, instance: Instance, server: Server) -> None:
        if server.hangs(self.now):
            self.after(self.deadline, self._late, request, instance)
        elif server.fails(self.now):
            self.after(0.0005 + self.way, self._answered, request, instance, False)
        elif server.busy < server.workers:
            self._work(request, instance, server)
        else:
            server.queue.append(request)

    def _work(self, request: Request, instance: Instance, server: Server) -> None:
        server.busy += 1
        self.after(request.work * server.slow(self.now), self._worked, request, instance, server)

    def _worked(self, request: Request, instance: Instance, server: Server) -> None:
        server.busy -= 1
        self.after(self.way, self._answered, request, instance, True)
        if server.queue:
            self._work(server.queue.popleft(), instance, server)
