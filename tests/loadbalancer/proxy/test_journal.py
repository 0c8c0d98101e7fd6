"""Counters and lines are made a piece at a time: nothing twice, nothing lost, and others go in between."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.proxy import journal
from twofold.loadbalancer.proxy.journal import Journal
from twofold.logs import records, writer

ENTRIES = 1000


def record(number: int) -> records.AccessRecord:
    return (number * 1_000_000, b"POST /predict 1.1", 200, 100, b"%d" % number, 10, 200)


@dataclass
class Desk:
    """A journal, and the other end of its pipe."""

    book: Journal
    pipe: int

    def enter(self, count: int, start: int = 0) -> None:
        self.book.entries += [record(number) for number in range(start, start + count)]

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
        return self.book.cells[shared_memory.STATUS_CELL[200]]


def play(part: Callable[[Desk], Awaitable[None]]) -> None:
    async def whole() -> None:
        fd = shared_memory.create()
        reading, writing = writer.open_pipe()
        os.set_blocking(reading, False)
        try:
            await part(Desk(Journal(shared_memory.attach(fd), 0, writing, "test"), reading))
        finally:
            for each in (fd, reading, writing):
                os.close(each)

    asyncio.run(whole())


async def rest(desk: Desk) -> int:
    """Until all is written down; how often others had their turn meanwhile."""
    turns = 0
    while desk.book._work is not None:
        await asyncio.sleep(0)
        turns += 1
    return turns


def test_others_have_their_turn_between_pieces() -> None:
    async def part(desk: Desk) -> None:
        desk.enter(ENTRIES)
        desk.book.flush()
        assert await rest(desk) >= journal.MOST_PIECES
        assert desk.lines() == list(range(ENTRIES))
        assert desk.answered == ENTRIES

    play(part)


def test_what_comes_meanwhile_is_for_the_next_time() -> None:
    async def part(desk: Desk) -> None:
        desk.enter(ENTRIES)
        desk.book.flush()
        await asyncio.sleep(0)
        desk.enter(50, start=ENTRIES)
        desk.book.flush()  # is under way
        await rest(desk)
        assert desk.answered == ENTRIES and len(desk.book.entries) == 50
        desk.book.flush()
        await rest(desk)
        assert desk.lines() == list(range(ENTRIES + 50))
        assert desk.answered == ENTRIES + 50

    play(part)


def test_the_end_comes_within_a_flush() -> None:
    async def part(desk: Desk) -> None:
        desk.enter(ENTRIES)
        desk.book.flush()
        await asyncio.sleep(0)
        desk.enter(50, start=ENTRIES)
        desk.book.close()
        await asyncio.sleep(0.01)
        assert desk.lines() == list(range(ENTRIES + 50))
        assert desk.answered == ENTRIES + 50 and not desk.book.entries

    play(part)


def test_a_failure_ends_one_flush_and_not_the_next_ones() -> None:
    async def part(desk: Desk) -> None:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(repr(what["exception"])))
        desk.enter(2)
        desk.book.entries.append((0, b"POST /predict 1.1", 200, 100, None, 10, 200))  # type: ignore[arg-type]
        desk.book.flush()
        await asyncio.sleep(0.01)
        assert len(told) == 1 and desk.answered == 3, "what could not be written is still counted"
        desk.enter(3)
        desk.book.flush()
        await rest(desk)
        assert desk.lines() == [0, 1, 2]

    play(part)
