"""How exact, fair and quick the bandwidth is, seen by a reader with a clock of its own.

Every figure of ours has the reader's own doubt beside it: the same reader, the same streams, before a
plain origin on a loopback device with `tc tbf` in a network namespace.  tbf counts packets with
their headers, so its rate is some 5 % lower in bytes of HTTP; its bins and steps are what to compare.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.balance import proxies
from bench.balance.openloop import Spec as Load
from bench.balance.openloop import generate
from bench.balance.proxies import launch, limited, ready
from bench.balance.streams import Group, Spec, Told, observe
from bench.environments import Unavailable
from bench.running import Running, free_port

STREAMS = 8
IN_FLIGHT = 0.008  # seconds of the rate that one exchange is worth: a message is less than a turn
MOST, LEAST = 200_000, 2_000  # bytes of an exchange
MIXES = {"50/50": 0.5, "90/10": 0.9}  # part of the bytes that goes up
FAIR = (2, 8, 64)
FAIR_MBPS, FAIR_BYTES = 50.0, 256_000  # all streams together
STEPS = (10.0, 50.0, 5.0)
ELEPHANT_MBPS, ELEPHANT_BYTES, SMALL_BYTES = 10.0, 1_000_000, 1024
IDLE = 1000
REJECT_MBPS, REJECT_BYTES = 10.0, 2048
LIMITER_MBPS, LIMITER_BYTES = 100.0, 5000
LIMITER_ROUNDS, LIMITER_SECONDS = 5, 3.0
STALLED_MS, ATTEMPTS = 60.0, 3  # a reader that was kept from its clock for so long has seen nothing


@dataclass(frozen=True)
class Plan:
    rates: tuple[float, ...]  # Mbps
    mixes: tuple[str, ...]
    tbf: tuple[float, ...]
    seconds: float  # of a steady state, the first second dropped
    short: float  # of the other figures
    reject: float


QUICK = Plan((10.0, 100.0), ("50/50",), (10.0, 100.0), 4, 2, 6)
FULL = Plan((1.0, 10.0, 50.0, 100.0, 500.0, 1000.0), tuple(MIXES), (1.0, 10.0, 100.0, 1000.0), 10, 5, 30)


def depth(mbps: float) -> float:
    """Bytes of the bucket that A.3 asks for: 50 ms of the rate, from 64 KiB to 1 MiB."""
    return min(1 << 20, max(65536, mbps * 1e6 / 8 * 0.05))


def quantum(mbps: float) -> float:
    """Bytes of one turn: 5 ms of the rate, from 4 KiB to 64 KiB."""
    return min(65536, max(4096, mbps * 1e6 / 8 * 0.005))


def backlog(mbps: float, part_up: float, streams: int = STREAMS) -> tuple[Group, ...]:
    """Streams that always have something to send, and never a second's worth."""
    size = min(MOST, max(LEAST, mbps * 1e6 / 8 * IN_FLIGHT))
    return (Group(streams, int(size * part_up), int(size * (1 - part_up))),)


class Bandwidth:
    """The whole part; `skipped` maps a name to its reason."""

    def __init__(self, plan: Plan, skipped: dict[str, str]) -> None:
        self.plan = plan
        self.skipped = skipped

    def measure(self) -> dict[str, Any]:
        with contextlib.ExitStack() as stack:
            self.origin = ready(launch(stack, proxies.module("origin", "origin", "--record")))
            found: dict[str, Any] = {"seconds": self.plan.seconds}
            found |= {"rates": self._rates(), "tbf": self._tbf(), "step": self._step()}
            for part in (self._fairness, self._elephant, self._idle, self._reject, self._limiter):
                name = part.__name__.lstrip("_")
                found[name] = part()
                print(f"{name}: {found[name]}", flush=True)
        return found

    @contextlib.contextmanager
    def _limited(self, mbps: float) -> Iterator[Running]:
        with contextlib.ExitStack() as stack:
            yield ready(launch(stack, limited(mbps).before(f"127.0.0.1:{self.origin.port}")))

    def _observe(self, running: Running, mbps: float, groups: tuple[Group, ...], **more: Any) -> Told:
        seconds = more.pop("seconds", self.plan.short)
        return observe(Spec(running.port, self.origin.port, groups, seconds, mbps, **more))

    # ------------------------------------------------------------------ accuracy

    def _rates(self) -> list[dict[str, Any]]:
        found = []
        for mbps in self.plan.rates:
            allowed = depth(mbps) + quantum(mbps)
            with self._limited(mbps) as running:
                for mix in self.plan.mixes:
                    groups = backlog(mbps, MIXES[mix])
                    for _ in range(ATTEMPTS):
                        told = self._observe(running, mbps, groups, seconds=self.plan.seconds)
                        print(_line("ours", mbps, told), flush=True)
                        if told.stall_ms < STALLED_MS:
                            break
                    found.append({"mbps": mbps, "mix": mix, "allowed": allowed, **_accuracy(told)})
        return found

    def _tbf(self) -> list[dict[str, Any]]:
        found = []
        for mbps in self.plan.tbf:
            told = self._behind_tbf(Spec(0, 0, backlog(mbps, 0.5), self.plan.short, mbps))
            if told is None:
                break
            found.append({"mbps": mbps, **_accuracy(told)})
            print(_line("tbf", mbps, told), flush=True)
        return found

    def _behind_tbf(self, spec: Spec) -> Told | None:
        port = free_port()
        try:
            unshare = proxies.program("unshare")
            proxies.program("tc")
            return observe(replace(spec, port=port, origin=port, edit="tbf"), unshare, "--net")
        except (Unavailable, RuntimeError, subprocess.TimeoutExpired) as error:
            self.skipped["tc tbf"] = str(error)[-300:]
            print(f"skipped tc tbf: {error}", flush=True)
            return None

    def _step(self) -> dict[str, Any]:
        """From one rate to the next while it serves, each for a while."""
        hold = min(2.0, self.plan.short)
        edits = tuple((hold * number, mbps) for number, mbps in enumerate(STEPS) if number)
        spec = Spec(0, 0, (Group(STREAMS, 8000, 8000),), hold * len(STEPS), STEPS[0], edits=edits)
        most = max(STEPS) * 1e6 / 80 + depth(max(STEPS))
        found: dict[str, Any] = {"hold": hold, "mbps": STEPS, "most": most}
        with self._limited(STEPS[0]) as running:
            admin = str(proxies.admin_socket(running.work))
            try:
                told = observe(replace(spec, port=running.port, origin=self.origin.port, edit=admin))
                found["ours"] = {**_accuracy(told), "settled_ms": told.settled_ms, "trace": told.trace}
                print(f"ours: steps settled after {told.settled_ms} ms", flush=True)
            except RuntimeError as error:
                self.skipped["step response"] = str(error)[-300:]
                print(f"skipped the step response: {error}", flush=True)
        behind = self._behind_tbf(spec)
        if behind is not None:
            found["tbf"] = {"settled_ms": behind.settled_ms, "trace": behind.trace}
            print(f"tbf: steps settled after {behind.settled_ms} ms", flush=True)
        return found

    # ------------------------------------------------------------------ fairness

    def _fairness(self) -> list[dict[str, Any]]:
        found = []
        with self._limited(FAIR_MBPS) as running:
            for streams in FAIR:
                half = FAIR_BYTES // streams // 2
                told = self._observe(running, FAIR_MBPS, (Group(streams, half, half),), seconds=5)
                found.append({"streams": streams, **told.groups[0], "mbps": told.rate / 1e6})
        return found

    def _elephant(self) -> dict[str, Any]:
        """20 small ones a second, alone, and beside a megabyte a second."""
        small, elephant = Group(20, SMALL_BYTES, SMALL_BYTES, 1.0), Group(1, ELEPHANT_BYTES, 2, 1.0)
        with self._limited(ELEPHANT_MBPS) as running:
            alone = self._observe(running, ELEPHANT_MBPS, (small,))
            beside = self._observe(running, ELEPHANT_MBPS, (small, elephant), seconds=2 * self.plan.short)
        return {
            "alone": alone.groups[0],
            "small": beside.groups[0],
            "elephant": beside.groups[1],
            "limit_us": 2 * 2 * quantum(ELEPHANT_MBPS) * 8 / ELEPHANT_MBPS + alone.groups[0]["p99_us"],
        }

    def _idle(self) -> dict[str, Any]:
        with self._limited(FAIR_MBPS) as running:
            groups = backlog(FAIR_MBPS, 0.5)
            without = self._observe(running, FAIR_MBPS, groups)
            beside = self._observe(running, FAIR_MBPS, groups, idle=IDLE)
        return {"connections": IDLE, "without": without.rate / 1e6, "with": beside.rate / 1e6}

    # ------------------------------------------------------------------ too much, and what it costs

    def _reject(self) -> dict[str, Any]:
        """Twice as many small ones as fit."""
        exchange = 2 * REJECT_BYTES + 500  # with heads
        load = Load(
            0,
            rate=2 * REJECT_MBPS * 1e6 / 8 / exchange,
            seconds=self.plan.reject,
            connections=2000,
            body=REJECT_BYTES,
            answer=REJECT_BYTES,
            skip=2.0,
        )
        with self._limited(REJECT_MBPS) as running:
            result = generate(replace(load, port=running.port))
        good, other = (
            8 * size / (load.seconds - load.skip) / 1e6 for size in (result.good_bytes, result.other_bytes)
        )
        return {**result.summary(), "mbps": REJECT_MBPS, "good_mbps": good, "other_mbps": other}

    def _limiter(self) -> dict[str, float]:
        """Cores used at nearly the whole bandwidth, with a limit and without."""
        exchange = 2 * LIMITER_BYTES + 500
        load = Load(
            0,
            rate=0.97 * LIMITER_MBPS * 1e6 / 8 / exchange,
            seconds=LIMITER_SECONDS,
            body=LIMITER_BYTES,
            answer=LIMITER_BYTES,
        )
        with self._limited(0.0) as free, self._limited(LIMITER_MBPS) as bound:
            time.sleep(0.5)  # their start is not their work
            running = {"unlimited": free, "limited": bound}
            used: dict[str, list[float]] = {name: [] for name in running}
            errors = dict.fromkeys(running, 0)
            for seed in range(LIMITER_ROUNDS):  # in turns, for the machine has fast minutes and slow ones
                for name, one in running.items():
                    before = one.tree.seconds()
                    result = generate(replace(load, port=one.port, seed=seed))
                    used[name].append((one.tree.seconds() - before) / load.seconds)
                    errors[name] += result.errors
        more = [mine - other for mine, other in zip(used["limited"], used["unlimited"], strict=True)]
        return {
            "exchanges": load.rate,
            "more": statistics.median(more),
            **{name: statistics.median(cores) for name, cores in used.items()},
            **{f"{name}_errors": count for name, count in errors.items()},
        }


def _accuracy(told: Told) -> dict[str, Any]:
    wanted = ("rate", "up", "excess", "within", "steady", "largest", "stall_ms", "groups")
    return {name: value for name, value in asdict(told).items() if name in wanted}


def _line(who: str, mbps: float, told: Told) -> str:
    off, allowed = (told.rate / 1e6 / mbps - 1) * 100, depth(mbps) + quantum(mbps)
    return (
        f"{who:5} {mbps:6g} Mbps: {told.rate / 1e6:9.3f} ({off:+.2f} %)  bins within 10 %: {told.within:.0%} "
        f"(of its own mean: {told.steady:.0%})  excess {told.excess / 1024:.0f} KiB of {allowed / 1024:.0f}  "
        f"reader stalled {told.stall_ms:.0f} ms"
    )
