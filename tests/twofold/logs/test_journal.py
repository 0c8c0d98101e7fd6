"""Counters and lines are made a piece at a time: nothing twice, nothing lost, and others go in between."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twofold.logs import journal, records, writer
from twofold.logs.journal import AccessJournal
from twofold.telemetry import counters

ENTRIES = 1000
ANSWERED, DROPPED, CELLS = 0, 1, 2

Pair = tuple[records.AccessRecord, int]


def record(number: int) -> records.AccessRecord:
    return (number * 1_000_000, b"POST /predict 1.1", 200, 100, b"%d" % number, 10, 200)


def count(cells: list[int], batch: list[records.AccessRecord]) -> list[records.AccessRecord]:
    cells[ANSWERED] += len(batch)
    return batch


@dataclass
class Desk:
    """A journal, and the other end of its pipe."""

    journal: AccessJournal[records.AccessRecord]
    pipe: int

    def enter(self, count: int, start: int = 0) -> None:
        self.journal.entries += [record(number) for number in range(start, start + count)]

    def lines(self) -> list[int]:
        """Numbers of the requests of which lines have come, in their order."""
        data = b""
        while True:
            try:
                piece = os.read(self.pipe, 1 << 20)
            except BlockingIOError:
                break
            data += piece
        written = data.replace(writer.CANCEL, b"").splitlines()
        return [int(json.loads(line)["data"]["opcRequestId"]) for line in written]

    @property
    def answered(self) -> int:
        return self.journal.cells[ANSWERED]


def play(part: Callable[[Desk], Awaitable[None]]) -> None:
    async def whole() -> None:
        kept = counters.Counters(counters.words(mmap.mmap(-1, 4096), 0, CELLS), ())
        reading, writing = writer.open_pipe()
        os.set_blocking(reading, False)
        try:
            await part(Desk(AccessJournal(kept, DROPPED, count, writing, "test"), reading))
        finally:
            for each in (reading, writing):
                os.close(each)

    asyncio.run(whole())


async def rest(desk: Desk) -> int:
    """Until all is written down; how often others had their turn meanwhile."""
    turns = 0
    while desk.journal._work is not None:
        await asyncio.sleep(0)
        turns += 1
    return turns


def test_others_have_their_turn_between_pieces() -> None:
    async def part(desk: Desk) -> None:
        desk.enter(ENTRIES)
        desk.journal.flush()
        assert await rest(desk) >= journal.MOST_PIECES
        assert desk.lines() == list(range(ENTRIES))
        assert desk.answered == ENTRIES

    play(part)


def test_what_comes_meanwhile_is_for_the_next_time() -> None:
    async def part(desk: Desk) -> None:
        desk.enter(ENTRIES)
        desk.journal.flush()
        await asyncio.sleep(0)
        desk.enter(50, start=ENTRIES)
        desk.journal.flush()  # is under way
        await rest(desk)
        assert desk.answered == ENTRIES and len(desk.journal.entries) == 50
        desk.journal.flush()
        await rest(desk)
        assert desk.lines() == list(range(ENTRIES + 50))
        assert desk.answered == ENTRIES + 50

    play(part)


def test_the_end_comes_within_a_flush() -> None:
    async def part(desk: Desk) -> None:
        desk.enter(ENTRIES)
        desk.journal.flush()
        await asyncio.sleep(0)
        desk.enter(50, start=ENTRIES)
        desk.journal.close()
        await asyncio.sleep(0.01)
        assert desk.lines() == list(range(ENTRIES + 50))
        assert desk.answered == ENTRIES + 50 and not desk.journal.entries

    play(part)


def test_a_failure_ends_one_flush_and_not_the_next_ones() -> None:
    async def part(desk: Desk) -> None:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(repr(what["exception"])))
        desk.enter(2)
        desk.journal.entries.append((0, b"POST /predict 1.1", 200, 100, None, 10, 200))  # type: ignore[arg-type]
        desk.journal.flush()
        await asyncio.sleep(0.01)
        assert len(told) == 1 and desk.answered == 3, "what could not be written is still counted"
        desk.enter(3)
        desk.journal.flush()
        await rest(desk)
        assert desk.lines() == [0, 1, 2]

    play(part)


def test_entries_may_hold_more_than_their_record() -> None:
    """What the record lacks is counted, and does not come into the line."""

    async def whole() -> None:
        def add(
            cells: list[int], batch: list[tuple[records.AccessRecord, int]]
        ) -> list[records.AccessRecord]:
            cells[ANSWERED] += sum(more for _, more in batch)
            return [entry for entry, _ in batch]

        kept = counters.Counters(counters.words(mmap.mmap(-1, 4096), 0, CELLS), ())
        reading, writing = writer.open_pipe()
        made = AccessJournal(kept, DROPPED, add, writing, "test")
        made.entries += [(record(number), 10) for number in range(3)]
        made.close()
        assert kept.cells == [30, 0]
        assert os.read(reading, 1 << 16).count(b"\n") == 3
        for each in (reading, writing):
            os.close(each)

    asyncio.run(whole())


def test_without_a_log_entries_are_counted() -> None:
    async def whole() -> None:
        kept = counters.Counters(counters.words(mmap.mmap(-1, 4096), 0, CELLS), ())
        made = AccessJournal(kept, DROPPED, count, -1, "test")
        made.entries += [record(number) for number in range(3)]
        made.flush()
        await asyncio.sleep(0.01)
        assert kept.cells == [3, 0] and not made.entries

    asyncio.run(whole())


def test_lines_that_the_log_writer_cannot_take_are_dropped_and_counted() -> None:
    async def part(desk: Desk) -> None:
        while not desk.journal.cells[DROPPED]:
            desk.enter(ENTRIES)
            desk.journal.close()
        assert desk.journal.cells[DROPPED] == ENTRIES
        assert desk.answered > writer.BACKLOG // 1000

    play(part)
