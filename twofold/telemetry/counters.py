"""Counters of one process, in a plain list, and their copy in shared memory for the other processes.

Touches only the block of shared memory that it is handed.  A block is a row of 64-bit words and has one
writer.  Adding to a list costs half as much as adding to shared memory, so a process counts in the list
and copies it into its block at each tick.  What a killed process had not copied is lost, but a block never
runs backwards: its next owner goes on from it.  Readers take no lock and tolerate a word of the last tick.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable, Sequence


def words(memory: mmap.mmap, offset: int, count: int) -> memoryview:
    """`count` 64-bit words from byte `offset` on. While the view lives, `memory` cannot be unmapped."""
    return memoryview(memory)[offset : offset + 8 * count].cast("Q")


def read_words(memory: mmap.mmap, offset: int, count: int) -> list[int]:
    """A copy of the same words."""
    with memoryview(memory) as whole, whole[offset : offset + 8 * count].cast("Q") as block:
        return block.tolist()


def totals(blocks: Iterable[Sequence[int]]) -> list[int]:
    """Cell by cell, the sum over blocks of one length; ValueError if the lengths differ."""
    return [sum(column) for column in zip(*blocks, strict=True)]


class Counters:
    """The counters of one process: `counters.cells[REPLAYED] += 1`, and `flush()` at every tick."""

    __slots__ = ("_block", "cells")

    def __init__(self, block: memoryview, gauges: Iterable[int]) -> None:
        """Go on from what the last owner of `block` left. Its gauges, named by their cells, ended with it."""
        self._block = block
        self.cells: list[int] = block.tolist()
        for gauge in gauges:
            self.cells[gauge] = 0
        self.flush()

    def flush(self) -> None:
        """Show the counts to the other processes."""
        self._block[:] = array("Q", self.cells)

    def close(self) -> None:
        """Let go of the memory, so that it can be unmapped."""
        self._block.release()
