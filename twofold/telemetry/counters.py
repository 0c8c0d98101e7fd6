"""Counters of a process: a plain list, and its copy in shared memory for other processes.

Touches only the given block of shared memory.  A block is a row of 64-bit words and has one writer.  Adding
to a list costs half as much as adding to shared memory, so a process counts in the list and copies it into
its block at each tick.  A killed process loses the counts since its last tick.  A block never decreases:
its next owner continues from it.  Readers take no lock, and may read counts of the last tick.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable, Sequence


def words(memory: mmap.mmap, offset: int, count: int) -> memoryview:
    """`count` 64-bit words from byte `offset` on. While the view exists, `memory` cannot be closed."""
    return memoryview(memory)[offset : offset + 8 * count].cast("Q")


def read_words(memory: mmap.mmap, offset: int, count: int) -> list[int]:
    """A copy of the same words."""
    with memoryview(memory) as whole, whole[offset : offset + 8 * count].cast("Q") as block:
        return block.tolist()


def totals(blocks: Iterable[Sequence[int]]) -> list[int]:
    """The sum of each cell over all blocks. Raises ValueError if their lengths differ."""
    return [sum(column) for column in zip(*blocks, strict=True)]


class Counters:
    """The counters of one process: `counters.cells[REPLAYED] += 1`, and `flush()` at every tick."""

    __slots__ = ("_block", "cells")

    def __init__(self, block: memoryview, gauges: Iterable[int]) -> None:
        """Continue from the counts of the last owner of `block`. `gauges`: the cells that start at 0."""
        self._block = block
        self.cells: list[int] = block.tolist()
        for gauge in gauges:
            self.cells[gauge] = 0
        self.flush()

    def flush(self) -> None:
        """Copy the counts into the block."""
        self._block[:] = array("Q", self.cells)

    def close(self) -> None:
        """Release the block, so that the memory can be closed."""
        self._block.release()
