"""What one proxied request costs: ours, nginx and HAProxy in alternating rounds before the same backend.

Three backends: an instance of ours over TCP, and a constant answer over TCP and over a Unix socket,
which shows the proxies alone.  Then latency at half load, requests at given times; and proxy and
instance together against the pairs that one would otherwise run.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.balance import proxies
from bench.balance.openloop import Result, Spec, generate
from bench.balance.proxies import Proxy, launch
from bench.cpu import JoinedTree, Tree
from bench.environments import Unavailable
from bench.load import Round, Target, run_round
from bench.run import wait_until_quiet
from bench.running import WORK, Running
from bench.servers import CONTENDERS, PROJECT
from bench.workloads import Body, padded

CONNECTIONS = 32
BODY_BYTES = 1024
ECHO = PROJECT / "examples" / "echo"
CONTEST = (proxies.OURS, proxies.NGINX_PLAIN, proxies.NGINX_BUFFERED, proxies.HAPROXY_PLAIN)
MORE = ("ours-unlimited", "ours-local")  # ours in other settings, before the instance of ours only
DUELLISTS = ("ours", "nginx", "ours-local")
PEERS = ("mosec", "uvicorn", "gunicorn")
HALF_CONNECTIONS = 64
OFFERED = 20_000.0  # requests/s: more than any of them can do beside the generator
OFFERED_SECONDS = 2.0


@dataclass(frozen=True)
class Plan:
    rounds: int
    duels: int  # more rounds, of ours and nginx: one tells the two apart to a tenth, and they are closer
    seconds: float  # of a round
    half_seconds: float  # of a round at half load
    peers: tuple[str, ...]


QUICK = Plan(3, 0, 1, 1.5, ("mosec",))
FULL = Plan(9, 27, 1, 2, PEERS)


def body() -> Body:
    """Rows of four numbers, padded with spaces to 1 KB."""
    return padded("1 KB", BODY_BYTES)


@dataclass
class Subject:
    """What a round is run against."""

    name: str
    title: str
    running: Running
    tree: Tree
    rounds: list[Round] = field(default_factory=list)
    half: list[Result] = field(default_factory=list)


class Cost:
    """The whole part; `skipped` maps a name to its reason."""

    def __init__(self, plan: Plan, skipped: dict[str, str]) -> None:
        self.plan = plan
        self.skipped = skipped
        self.body = body()
        self.path = WORK / "body-1024"

    def measure(self) -> dict[str, Any]:
        WORK.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(self.body.content)
        try:
            return {
                "cells": [
                    self._cell("echo", "instance of ours, TCP", self._echo, half=True),
                    self._cell("constant", "constant answer, TCP", self._constant),
                    self._cell("constant-unix", "constant answer, Unix socket", self._constant_unix),
                    self._cell("plain", "constant answer without our fields, TCP", self._plain),
                ],
                "pairs": self._pairs(),
            }
        finally:
            self.path.unlink()

    # ------------------------------------------------------------------ backends

    def _echo(self, stack: contextlib.ExitStack) -> tuple[Running, str]:
        backend = launch(stack, CONTENDERS[0], ECHO)
        backend.wait(self.body)
        return backend, f"127.0.0.1:{backend.port}"

    def _constant(self, stack: contextlib.ExitStack) -> tuple[Running, str]:
        backend = launch(stack, proxies.module("constant", "constant", unix=True))
        backend.wait(Body("1 KB", self.body.content, {"rows": 0}))
        return backend, f"127.0.0.1:{backend.port}"

    def _plain(self, stack: contextlib.ExitStack) -> tuple[Running, str]:
        backend = launch(stack, proxies.module("constant", "constant", "--plain", unix=True))
        backend.wait(Body("1 KB", self.body.content, {"rows": 0}))
        return backend, f"127.0.0.1:{backend.port}"

    def _constant_unix(self, stack: contextlib.ExitStack) -> tuple[Running, str]:
        backend, _ = self._constant(stack)
        return backend, f"unix:{backend.work / 'socket'}"

    # ------------------------------------------------------------------ cells

    def _cell(
        self,
        name: str,
        title: str,
        backend: Callable[[contextlib.ExitStack], tuple[Running, str]],
        half: bool = False,
    ) -> dict[str, Any]:
        with contextlib.ExitStack() as stack:
            _, upstream = backend(stack)
            answer = self.body.answer if name == "echo" else {"rows": 0}
            contest = (*CONTEST, proxies.OURS_UNLIMITED, proxies.OURS_LOCAL) if half else CONTEST
            subjects = [
                found for one in contest if (found := self._subject(stack, one, upstream, answer)) is not None
            ]
            self._rounds(title, subjects)
            self._duels([one for one in subjects if one.name in DUELLISTS])
            rate = 0.0
            if half and subjects:
                rate = self._half_load([one for one in subjects if one.name not in MORE])
        return {
            "name": name,
            "title": title,
            "half_rate": rate,
            "proxies": {one.name: _as_json(one) for one in subjects},
        }

    def _subject(
        self, stack: contextlib.ExitStack, proxy: Proxy, upstream: str, answer: Any
    ) -> Subject | None:
        try:
            running = launch(stack, proxy.before(upstream))
            running.wait(Body("1 KB", self.body.content, answer))
        except Unavailable as error:
            self.skipped[proxy.name] = str(error)
            print(f"skipped {proxy.name}: {error}", flush=True)
            return None
        return Subject(proxy.name, proxy.title, running, running.tree)

    def _rounds(self, title: str, subjects: list[Subject]) -> None:
        for one in subjects:  # warm up
            run_round(one.tree, self._target(one), 8, 1)
        self._play(subjects, self.plan.rounds)
        print(f"\n{title}: 1 KB, {CONNECTIONS} connections", flush=True)
        for one in subjects:
            print(
                f"  {one.name:20} {median(one, 'cpu_us'):6.1f} us  {median(one, 'rate'):8,.0f}/s", flush=True
            )

    def _duels(self, subjects: list[Subject]) -> None:
        self._play(subjects, self.plan.duels)
        if self.plan.duels and len(subjects) > 1:
            part = {one.name: f"{median(one, 'cpu_us'):.1f} us" for one in subjects}
            print(f"  after {self.plan.duels} more rounds: {part}", flush=True)

    def _play(self, subjects: list[Subject], rounds: int) -> None:
        for number in range(rounds):
            for one in turned(subjects, number):
                wait_until_quiet(one.tree)
                one.rounds.append(run_round(one.tree, self._target(one), CONNECTIONS, self.plan.seconds))

    def _half_load(self, subjects: list[Subject]) -> float:
        """At half of what nginx can do beside the same generator, which takes its part of the cores.

        Of the first one where there is no nginx.
        """
        by_name = {one.name: one for one in subjects}
        best = by_name.get("nginx", subjects[0])
        rate = statistics.median(self._most(best, number) for number in range(self.plan.rounds)) / 2
        self._calm(subjects, rate, range(self.plan.rounds))
        # One hiccup of the machine in a round is its p99: as with the CPU, the closest two need more.
        duellists = [one for one in subjects if one.name in DUELLISTS]
        self._calm(duellists, rate, range(self.plan.rounds, self.plan.rounds + self.plan.duels))
        print(f"\n{rate:,.0f} requests/s at given times, half of what it can be", flush=True)
        for one in subjects:
            p50, p99 = (half_median(one, figure) for figure in ("p50_us", "p99_us"))
            print(f"  {one.name:20} p50 {p50 / 1000:6.2f} ms  p99 {p99 / 1000:6.2f} ms", flush=True)
        return rate

    def _calm(self, subjects: list[Subject], rate: float, rounds: range) -> None:
        for number in rounds:
            for one in turned(subjects, number):
                wait_until_quiet(one.tree)
                one.half.append(generate(self._spec(one, rate, self.plan.half_seconds, number)))

    def _spec(self, one: Subject, rate: float, seconds: float, seed: int) -> Spec:
        return Spec(
            one.running.port,
            rate,
            seconds,
            seed=seed,
            connections=HALF_CONNECTIONS,
            json=True,
            text=self.body.content.decode(),
        )

    def _most(self, one: Subject, seed: int) -> float:
        """Answers per second when far too much is asked of it."""
        wait_until_quiet(one.tree)
        spec = self._spec(one, OFFERED, OFFERED_SECONDS, seed)
        found = generate(spec)
        ends = [
            request.at_us + latency
            for request, latency in zip(spec.requests(), found.latencies_us, strict=True)
            if latency >= 0
        ]
        begin, end = spec.skip * 1e6, spec.seconds * 1e6
        return sum(begin <= at < end for at in ends) / (spec.seconds - spec.skip)

    def _target(self, one: Subject) -> Target:
        return Target(one.running.port, "/predict", self.path)

    # ------------------------------------------------------------------ proxy and instance together

    def _pairs(self) -> dict[str, Any]:
        """Ours before ours, nginx before each peer; every instance has two model processes."""
        known = {one.name: one for one in CONTENDERS}
        subjects = []
        with contextlib.ExitStack() as stack:
            for proxy, name in (
                (proxies.OURS_LOCAL, "twofold"),
                *((proxies.NGINX_PLAIN, one) for one in self.plan.peers),
            ):
                try:
                    backend = launch(stack, known[name])
                    backend.wait(self.body)
                    running = launch(stack, proxy.before(f"127.0.0.1:{backend.port}"))
                    running.wait(self.body)
                except Unavailable as error:
                    self.skipped[f"{proxy.name} + {name}"] = str(error)
                    print(f"skipped {proxy.name} + {name}: {error}", flush=True)
                    continue
                title = f"{proxy.title} + {known[name].title}"
                tree = JoinedTree(running.process.pid, backend.tree)
                subjects.append(Subject(f"{proxy.name} + {name}", title, running, tree))
            self._rounds("proxy and instance together", subjects)
        return {one.name: _as_json(one) for one in subjects}


def turned(subjects: list[Subject], number: int) -> list[Subject]:
    """Each round begins with another one."""
    turn = number % max(1, len(subjects))
    return subjects[turn:] + subjects[:turn]


def median(one: Subject, figure: str) -> float:
    return float(statistics.median(getattr(round_, figure) for round_ in one.rounds))


def half_median(one: Subject, figure: str) -> float:
    return float(statistics.median(result.summary()[figure] for result in one.half))


def _as_json(one: Subject) -> dict[str, Any]:
    return {
        "title": one.title,
        "rounds": [{**asdict(round_), "rate": round_.rate} for round_ in one.rounds],
        "half": [result.summary() for result in one.half],
    }
