"""What arrived when, against a rate: error, envelope, bins, step response, fairness.  Pure arithmetic.

A sample is (monotonic ns, bytes); samples are in order of time.  Rates are bit/s.
"""

from __future__ import annotations

from collections.abc import Sequence

Sample = tuple[int, int]
SECOND = 1_000_000_000


def total(samples: Sequence[Sample], begin: int, end: int) -> int:
    return sum(size for at, size in samples if begin <= at < end)


def rate(samples: Sequence[Sample], begin: int, end: int) -> float:
    return 8 * total(samples, begin, end) * SECOND / (end - begin)


def bins(samples: Sequence[Sample], begin: int, end: int, width: int) -> list[int]:
    """Bytes in each whole bin of `width` ns."""
    found = [0] * ((end - begin) // width)
    for at, size in samples:
        index = (at - begin) // width
        if at >= begin and index < len(found):
            found[index] += size
    return found


def within(found: Sequence[int], wanted: float, tolerance: float) -> float:
    """The part of the bins that differ from `wanted` bytes by at most `tolerance` of it."""
    return sum(abs(one - wanted) <= tolerance * wanted for one in found) / max(1, len(found))


def excess(samples: Sequence[Sample], bits: float) -> float:
    """The most bytes, over all i <= j, that samples i to j have beyond what the rate gives from i to j.

    This is the least depth of a token bucket at this rate that would have let the samples pass.
    """
    worst = lowest = passed = 0.0
    start = samples[0][0] if samples else 0
    for at, size in samples:
        given = bits / 8 * (at - start) / SECOND
        lowest = min(lowest, passed - given)
        passed += size
        worst = max(worst, passed - given - lowest)
    return worst


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 when all have the same, 1/n when one has everything."""
    squares = sum(one * one for one in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def settled(samples: Sequence[Sample], edit: int, before: float, after: float, window: int) -> float:
    """Milliseconds from `edit` until 90 % of the step from one rate to the other is done, and stays done
    for as long as the window: the rate is taken over the `window` ns before.  Negative: never within 2 s.
    """
    goal, step = before + 0.9 * (after - before), window // 10
    held = 0
    for end in range(edit + step, edit + 2 * SECOND, step):
        now = rate(samples, max(end - window, edit), end)
        reached = now >= goal if after > before else now <= goal
        held = held + step if reached else 0
        if held >= window:
            return (end - held + step - edit) / 1e6
    return -1.0


def trace(samples: Sequence[Sample], begin: int, end: int, width: int) -> list[float]:
    """Mbit/s bin by bin, for a chart."""
    return [round(8 * size * 1000 / width, 3) for size in bins(samples, begin, end, width)]
