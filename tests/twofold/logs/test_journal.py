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
class JournalPipe:
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


def run(scenario: Callable[[JournalPipe], Awaitable[None]]) -> None:
    async def whole() -> None:
        kept = counters.Counters(counters.words(mmap.mmap(-1, 4096), 0, CELLS), ())
        reading, writing = writer.open_pipe()
        os.set_blocking(reading, False)
        try:
            await scenario(JournalPipe(AccessJournal(kept, DROPPED, count, writing, "test"), reading))
        finally:
            for each in (reading, writing):
                os.close(each)

    asyncio.run(whole())


async def flushed(log: JournalPipe) -> int:
    """Until all entries are written; how many turns the loop has made meanwhile."""
    turns = 0
    while log.journal._work is not None:
        await asyncio.sleep(0)
        turns += 1
    return turns


def test_other_tasks_run_between_the_pieces_of_a_flush() -> None:
    async def scenario(log: JournalPipe) -> None:
        log.enter(ENTRIES)
        log.journal.flush()
        assert await flushed(log) >= journal.MOST_PIECES
        assert log.lines() == list(range(ENTRIES))
        assert log.answered == ENTRIES

    run(scenario)


def test_entries_made_during_a_flush_wait_for_the_next_one() -> None:
    async def scenario(log: JournalPipe) -> None:
        log.enter(ENTRIES)
        log.journal.flush()
        await asyncio.sleep(0)
        log.enter(50, start=ENTRIES)
        log.journal.flush()  # is under way
        await flushed(log)
        assert log.answered == ENTRIES and len(log.journal.entries) == 50
        log.journal.flush()
        await flushed(log)
        assert log.lines() == list(range(ENTRIES + 50))
        assert log.answered == ENTRIES + 50

    run(scenario)


def test_close_during_a_flush_writes_everything() -> None:
    async def scenario(log: JournalPipe) -> None:
        log.enter(ENTRIES)
        log.journal.flush()
        await asyncio.sleep(0)
        log.enter(50, start=ENTRIES)
        log.journal.close()
        await flushed(log)
        assert log.lines() == list(range(ENTRIES + 50))
        assert log.answered == ENTRIES + 50 and not log.journal.entries

    run(scenario)


def test_a_failed_flush_leaves_the_next_ones_alone() -> None:
    async def scenario(log: JournalPipe) -> None:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(repr(what["exception"])))
        log.enter(2)
        log.journal.entries.append((0, b"POST /predict 1.1", 200, 100, None, 10, 200))  # type: ignore[arg-type]
        log.journal.flush()
        await flushed(log)
        assert len(told) == 1 and log.answered == 3, "what could not be written is still counted"
        log.enter(3)
        log.journal.flush()
        await flushed(log)
        assert log.lines() == [0, 1, 2]

    run(scenario)


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
        while made._work is not None:
            await asyncio.sleep(0)
        assert kept.cells == [3, 0] and not made.entries

    asyncio.run(whole())


def test_lines_that_the_log_writer_cannot_take_are_dropped_and_counted() -> None:
    async def scenario(log: JournalPipe) -> None:
        while not log.journal.cells[DROPPED]:
            log.enter(ENTRIES)
            log.journal.close()
        assert log.journal.cells[DROPPED] == ENTRIES
        assert log.answered > writer.BACKLOG // 1000

    run(scenario)
