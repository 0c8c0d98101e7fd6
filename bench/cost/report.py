"""What one comparison found: lines for a terminal, JSON, and a small Markdown table.

Pure, but for write(), which touches the path it is given.
"""

from __future__ import annotations

import enum
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cost import pairs
from bench.cost.counting import Counts
from bench.cost.pairs import Verdict
from bench.cost.parts import Part
from bench.cost.timing import Times
from bench.load import Round


class ExitCode(enum.IntEnum):
    CHEAP = 0
    DEARER = 1
    FAILED = 2  # as argparse
    UNDECIDED = 3


@dataclass(frozen=True)
class Outcome:
    """Of one part; `uncounted` says why there are no instructions where they were wanted."""

    part: Part
    times: Times
    counts: Counts | None = None
    uncounted: str = ""

    @property
    def spread(self) -> pairs.Spread:
        return pairs.spread(self.times.ratios)

    @property
    def by_time(self) -> Verdict:
        return pairs.judge(self.spread)

    @property
    def instructions(self) -> float | None:
        """this/other; None where nothing was counted."""
        return self.counts.ratio if self.counts else None

    @property
    def verdict(self) -> Verdict:
        return pairs.final(self.by_time, self.instructions)


def exit_code(verdicts: list[Verdict]) -> ExitCode:
    """CHEAP where every part is; one that is dearer outweighs one that is undecided."""
    if Verdict.DEARER in verdicts:
        return ExitCode.DEARER
    return ExitCode.UNDECIDED if Verdict.NOISY in verdicts else ExitCode.CHEAP


def lines(outcome: Outcome) -> list[str]:
    """For a terminal."""
    found, times = outcome.spread, outcome.times
    first, third = found.quartiles
    interval = f"{found.low:.3f} to {found.high:.3f} with {found.confidence:.0%} confidence"
    told = [
        f"  {outcome.verdict}: median ratio {found.median:.3f} ({interval})",
        f"  quartiles {first:.3f} and {third:.3f}, least {found.least:.3f}, most {found.most:.3f}",
        f"  CPU per request: this {median_us(times.this):.1f} us, other {median_us(times.other):.1f} us",
    ]
    if outcome.counts:
        mine, theirs = outcome.counts.medians
        each = f"this {mine:,.0f}, other {theirs:,.0f}, ratio {outcome.instructions:.3f}"
        told.append(f"  instructions per request: {each}")
    if outcome.uncounted:
        told.append(f"  instructions were not counted: {outcome.uncounted}")
    return told


def median_us(rounds: list[Round]) -> float:
    return statistics.median(one.cpu_us for one in rounds)


def as_json(outcome: Outcome) -> dict[str, Any]:
    times = outcome.times
    return {
        "title": outcome.part.title,
        "verdict": outcome.verdict,
        "by_time": outcome.by_time,
        "ratios": times.ratios,
        "spread": asdict(outcome.spread),
        "cpu_us": {"this": median_us(times.this), "other": median_us(times.other)},
        "rounds": {
            "this": [one.as_json() for one in times.this],
            "other": [one.as_json() for one in times.other],
        },
        "instructions": {
            "ratio": outcome.instructions,
            "this": [asdict(block) for block in outcome.counts.this],
            "other": [asdict(block) for block in outcome.counts.other],
        }
        if outcome.counts
        else None,
        "uncounted": outcome.uncounted,
    }


def markdown(result: dict[str, Any]) -> str:
    plan = result["plan"]
    told = [f"# {result['this']} against {result['other']}, {result['date']}", ""]
    told += [f"- {name}: {value}" for name, value in result["machine"].items()]
    rounds = f"{plan['pairs']} pairs of rounds of {plan['seconds']} s"
    asked = f"{plan['connections']} connections, {plan['body']} bytes"
    told += [
        f"- {rounds}, {asked}; both {result['form']}",
        "",
        "| | verdict | ratio | interval | quartiles | this us | other us | instructions |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in result["parts"].items():
        found, cpu = one["spread"], one["cpu_us"]
        first, third = found["quartiles"]
        ratio = f"{one['instructions']['ratio']:.3f}" if one["instructions"] else ""
        told.append(
            f"| {name} | {one['verdict']} | {found['median']:.3f} | {found['low']:.3f} - {found['high']:.3f} "
            f"| {first:.3f} - {third:.3f} | {cpu['this']:.1f} | {cpu['other']:.1f} | {ratio} |"
        )
    return "\n".join(told) + "\n"


def write(result: dict[str, Any], path: Path) -> list[Path]:
    """JSON at `path`, Markdown beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    beside = path.with_suffix(".md")
    beside.write_text(markdown(result))
    return [path, beside]
