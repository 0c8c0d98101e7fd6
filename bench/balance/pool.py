"""How requests are spread: four instances, requests at given times, latency charged from those times.

The instances are scripted origins whose work is a sleep, named by the request, so every proxy meets
the same arrivals and the same work, and so does the central queue that is computed for comparison.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

from bench.balance import proxies
from bench.balance.openloop import Result, Spec, generate
from bench.balance.proxies import Proxy, launch, ready
from bench.balance.traffic import Work, central_queue, percentile
from bench.environments import Unavailable
from bench.running import Running

INSTANCES, WORKERS = 4, 2
USUAL = Work(10_000)
MIXED = Work(1_000, "bimodal")
SLOW, SLOW_LOAD, MIXED_LOAD = 10, 0.5, 0.7
CONNECTIONS = 512
SEED = 7

CONTEST = (proxies.OURS, proxies.NGINX_BUFFERED, proxies.HAPROXY_PLAIN, proxies.HAPROXY_QUEUE)


@dataclass(frozen=True)
class Plan:
    loads: tuple[float, ...]
    contest: tuple[Proxy, ...]
    mixed: tuple[Proxy, ...]
    slow: tuple[Proxy, ...]
    seconds: float
    mixed_seconds: float  # its p99 is among the tenth that takes long: fewer say little


QUICK = Plan((0.5, 0.7, 0.9, 0.95), CONTEST[:3], (proxies.OURS, proxies.NGINX_BLIND), (proxies.OURS,), 4, 12)
FULL = Plan((0.5, 0.7, 0.9, 0.95), CONTEST, (*CONTEST[:3], proxies.NGINX_BLIND), CONTEST[:3], 16, 40)


def load_of(load: float, work: Work, seconds: float) -> Spec:
    """So much of what the healthy pool can do."""
    rate = load * INSTANCES * WORKERS * 1e6 / work.average_us
    return Spec(0, rate, seconds + 1, work, SEED, connections=CONNECTIONS, body=256, answer=64, skip=1.0)


def ideal(spec: Spec) -> dict[str, float]:
    """The same requests before one queue and all workers."""
    requests = spec.requests()
    latencies = central_queue(requests, INSTANCES * WORKERS)
    counted = [late for late, one in zip(latencies, requests, strict=True) if one.at_us >= spec.skip * 1e6]
    return {"p50_us": percentile(counted, 0.5), "p99_us": percentile(counted, 0.99)}


class Pool:
    """The whole part; `skipped` maps a name to its reason."""

    def __init__(self, plan: Plan, skipped: dict[str, str]) -> None:
        self.plan = plan
        self.skipped = skipped

    def measure(self) -> dict[str, Any]:
        plan = self.plan
        found: dict[str, Any] = {
            "instances": INSTANCES,
            "workers": WORKERS,
            "seconds": plan.seconds,
            "mixed_seconds": plan.mixed_seconds,
        }
        with contextlib.ExitStack() as stack:
            known = self._started(stack, {*plan.contest, *plan.mixed}, 1.0)
            found["loads"] = [
                self._cell(f"{load:.0%}", load_of(load, USUAL, plan.seconds), known, plan.contest)
                | {"load": load}
                for load in plan.loads
            ]
            mixed = load_of(MIXED_LOAD, MIXED, plan.mixed_seconds)
            found["mixed"] = self._cell("1 ms and 100 ms", mixed, known, plan.mixed)
        with contextlib.ExitStack() as stack:
            known = self._started(stack, set(plan.slow), float(SLOW))
            slow = load_of(SLOW_LOAD, USUAL, plan.seconds)
            found["slow"] = self._cell("one slowed 10 times", slow, known, plan.slow)
        return found

    def _started(self, stack: contextlib.ExitStack, wanted: set[Proxy], slow: float) -> dict[str, Running]:
        """The instances, the last of them slowed, and the proxies before them."""
        origins = [
            ready(launch(stack, proxies.module("origin", f"origin-{number}", *self._options(number, slow))))
            for number in range(INSTANCES)
        ]
        upstreams = [f"127.0.0.1:{one.port}" for one in origins]
        known = {}
        for proxy in sorted(wanted, key=lambda one: one.name):
            try:
                known[proxy.name] = ready(launch(stack, proxy.before(*upstreams)))
            except Unavailable as error:
                self.skipped[proxy.name] = str(error)
                print(f"skipped {proxy.name}: {error}", flush=True)
        return known

    def _options(self, number: int, slow: float) -> list[str]:
        factor = slow if number == INSTANCES - 1 else 1.0
        return ["--name", str(number), "--workers", str(WORKERS), "--slow", f"{factor:g}"]

    def _cell(
        self, title: str, spec: Spec, known: dict[str, Running], contest: tuple[Proxy, ...]
    ) -> dict[str, Any]:
        best = ideal(spec)
        print(
            f"\n{title}: {spec.rate:,.0f} requests/s  central queue p99 {best['p99_us'] / 1000:.1f} ms",
            flush=True,
        )
        found = {}
        for proxy in contest:
            if proxy.name in known:
                result = generate(replace(spec, port=known[proxy.name].port))
                found[proxy.name] = {"title": proxy.title, **result.summary(), "shares": shares(result)}
                print(line(proxy.name, found[proxy.name]), flush=True)
        return {"title": title, "rate": spec.rate, "central_queue": best, "proxies": found}


def shares(result: Result) -> dict[str, float]:
    """The part of the answers that came from each instance."""
    total = sum(result.instances.values())
    return {name: count / total for name, count in sorted(result.instances.items())}


def line(name: str, one: dict[str, Any]) -> str:
    parts = " ".join(f"{part:.3f}" for part in one["shares"].values())
    return (
        f"  {name:16} p50 {one['p50_us'] / 1000:7.2f} ms  p99 {one['p99_us'] / 1000:7.2f} ms  "
        f"shares {parts}  {one['statuses']}  generator late p99 {one['late_p99_us'] / 1000:.2f} ms"
    )
