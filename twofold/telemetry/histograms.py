"""Histograms of durations in cells of a process's counters: layout, update and reading.

Pure.  A histogram takes SIZE cells: BUCKETS counts, then the sum of all durations in microseconds.  A
duration d, in whole microseconds, is counted in bucket d.bit_length(): bucket i has the durations from
2**(i-1) to 2**i - 1, bucket 0 the duration 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

BUCKETS: Final = 63
SUM: Final = 63  # cell of the sum, from the histogram's first cell on
SIZE: Final = 64


def observe(cells: list[int], start: int, spent_us: int) -> None:
    """Count one duration in the histogram that begins at the cell `start`."""
    cells[start + spent_us.bit_length()] += 1
    cells[start + SUM] += spent_us


def observe_all(cells: list[int], start: int, column_us: Sequence[int]) -> None:
    """Count many durations at once, at a third of the cost of observe() for each."""
    buckets = bytes(map(int.bit_length, column_us))  # bytes.count() is the fastest way to count
    for bucket in set(buckets):
        cells[start + bucket] += buckets.count(bucket)
    cells[start + SUM] += sum(column_us)


def counts(cells: Sequence[int], start: int) -> Sequence[int]:
    """The counts of the buckets of the histogram that begins at the cell `start`."""
    return cells[start : start + BUCKETS]
