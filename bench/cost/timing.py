"""CPU per request of both sides, in pairs of rounds that alternate.

Touches loopback through wrk, and the file of the body.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.cost import pairs
from bench.cost.parts import Both, Part, Side, Way, started
from bench.load import Round, run_round
from bench.run import wait_until_quiet
from bench.running import WORK

WARM_SECONDS = 1


@dataclass(frozen=True)
class Plan:
    pairs: int
    seconds: int  # of a round
    connections: int
    body: int  # bytes


@dataclass(frozen=True)
class Times:
    """The rounds of both sides, pair by pair."""

    this: list[Round]
    other: list[Round]

    @property
    def ratios(self) -> list[float]:
        return pairs.ratios([one.cpu_us for one in self.this], [one.cpu_us for one in self.other])


def measure(part: Part, both: Both, plan: Plan) -> Times:
    """Raises Unavailable where a side does not start, and RuntimeError for a round with errors."""
    body = part.body(plan.body)
    path = WORK / f"cost-body-{plan.body}"
    path.write_bytes(body.content)
    times = Times([], [])
    try:
        with started(part, both, Way(), body) as sides:
            for side in sides:
                run_round(side.tree, side.target(path), plan.connections, WARM_SECONDS)
            for number, turn in enumerate(pairs.turns(plan.pairs), 1):
                for index in turn:
                    (times.this, times.other)[index].append(_round(sides[index], plan))
                mine, theirs = times.this[-1].cpu_us, times.other[-1].cpu_us
                told = f"this {mine:6.1f} us  other {theirs:6.1f} us  ratio {mine / theirs:.3f}"
                print(f"  pair {number}/{plan.pairs}: {told}", flush=True)
            for side in sides:
                side.asked.check(body)
    finally:
        path.unlink()
    return times


def _round(side: Side, plan: Plan) -> Round:
    wait_until_quiet(side.tree)
    target = side.target(WORK / f"cost-body-{plan.body}")
    done = run_round(side.tree, target, plan.connections, plan.seconds)
    if done.errors or not done.requests:
        name = side.installation.name
        raise RuntimeError(f"{done.errors} of {done.requests} requests to {name} failed: no figure is right")
    return done
