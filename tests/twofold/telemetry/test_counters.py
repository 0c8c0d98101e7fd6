"""Counters of a process, their block in shared memory, and sums over blocks."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from twofold.telemetry import counters
from twofold.telemetry.counters import Counters

CELLS, GAUGE = 4, 2


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 4096) as mapped:
        yield mapped


def test_counts_are_private_until_flushed_and_survive_their_owner(memory: mmap.mmap) -> None:
    first = Counters(counters.words(memory, 64, CELLS), (GAUGE,))
    first.cells[0] += 2
    first.cells[GAUGE] = 17
    assert counters.read_words(memory, 64, CELLS) == [0, 0, 0, 0]
    first.flush()
    assert counters.read_words(memory, 64, CELLS) == [2, 0, 17, 0]
    second = Counters(counters.words(memory, 64, CELLS), (GAUGE,))
    assert second.cells == counters.read_words(memory, 64, CELLS) == [2, 0, 0, 0], (
        "gauges end with their owner"
    )
    assert memory[:64] == bytes(64) and not any(memory[64 + 8 * CELLS :])
    for each in (first, second):
        each.close()


def test_totals(memory: mmap.mmap) -> None:
    assert counters.totals([[1, 2], [10, 20], [100, 200]]) == [111, 222]
    with pytest.raises(ValueError, match="longer|shorter"):
        counters.totals([[1], [1, 2]])
