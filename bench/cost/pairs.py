"""What two series of figures say about each other: paired ratios, their spread, and the verdict.

Pure arithmetic.  A shared machine is fast in one minute and slow in the next.  The two rounds of a pair
follow each other at once, so that their ratio says more than the two medians.

As cheap as before: the median of the ratios this/other is at most TIME_BAR.  Where the noise is too large
to tell, instructions per request decide: at most INSTRUCTIONS_BAR times the other's.
"""

from __future__ import annotations

import enum
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

TIME_BAR = 1.03
INSTRUCTIONS_BAR = 1.02
NOISE = TIME_BAR - 1  # an interval wider than the difference that is looked for says nothing
CONFIDENCE = 0.95


class Verdict(enum.StrEnum):
    CHEAP = "as cheap"
    DEARER = "dearer"
    NOISY = "too noisy"


@dataclass(frozen=True)
class Spread:
    """Of ratios; `low` and `high` enclose the true median with CONFIDENCE, or are the extremes of too few."""

    median: float
    low: float
    high: float
    quartiles: tuple[float, float]
    least: float
    most: float
    confidence: float


def turns(pairs: int) -> list[tuple[int, int]]:
    """Which of the two begins: 0 1, 1 0, 0 1, ..."""
    return [(0, 1) if number % 2 == 0 else (1, 0) for number in range(pairs)]


def ratios(this: Sequence[float], other: Sequence[float]) -> list[float]:
    """Pair by pair; raises ValueError where one series is longer or a figure is not positive."""
    if any(figure <= 0 for figure in (*this, *other)):
        raise ValueError("a round without any processor time or request has no ratio")
    return [mine / theirs for mine, theirs in zip(this, other, strict=True)]


def interval(count: int) -> tuple[int, float]:
    """(rank, confidence): from the rank-th lowest to the rank-th highest of `count` values.

    It asks for no distribution: each value is below the true median in one case of two.
    """
    rank, confidence, outside = 1, 1 - 2 * 0.5**count, 0.0
    for below in range((count - 1) // 2 + 1):
        outside += 2 * math.comb(count, below) * 0.5**count
        if 1 - outside < CONFIDENCE:
            break
        rank, confidence = below + 1, 1 - outside
    return rank, confidence


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("no pair was measured")
    ordered = sorted(values)
    rank, confidence = interval(len(ordered))
    quartiles = (ordered[0], ordered[0])
    if len(ordered) > 1:
        first, _, third = statistics.quantiles(ordered, n=4, method="inclusive")
        quartiles = (first, third)
    return Spread(
        median=statistics.median(ordered),
        low=ordered[rank - 1],
        high=ordered[-rank],
        quartiles=quartiles,
        least=ordered[0],
        most=ordered[-1],
        confidence=confidence,
    )


def common_slope(*series: Sequence[tuple[float, float]]) -> float:
    """How y grows with x in all series, whatever their levels; 0 where no x differs.

    The median of the slopes between any two points of one series (Theil and Sen): outliers do not move it.
    """
    slopes = [
        (y2 - y1) / (x2 - x1)
        for points in series
        for (x1, y1), (x2, y2) in itertools.combinations(points, 2)
        if x1 != x2
    ]
    return statistics.median(slopes) if slopes else 0.0


def judge(found: Spread) -> Verdict:
    """By time: a wide interval decides only where it is sure, and the bar lies outside."""
    sure = found.confidence >= CONFIDENCE and not found.low <= TIME_BAR < found.high
    if found.high - found.low > NOISE and not sure:
        return Verdict.NOISY
    return Verdict.CHEAP if found.median <= TIME_BAR else Verdict.DEARER


def judge_instructions(ratio: float) -> Verdict:
    return Verdict.CHEAP if ratio <= INSTRUCTIONS_BAR else Verdict.DEARER


def final(by_time: Verdict, ratio: float | None) -> Verdict:
    """`ratio` of instructions, None where none were counted. They decide only where time does not."""
    if by_time is Verdict.NOISY and ratio is not None:
        return judge_instructions(ratio)
    return by_time
