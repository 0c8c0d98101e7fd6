"""What a process writes down of its requests: counters and the access log, made in batches.

Touches the block of counters and the pipe of the log writer, and neither ever makes a request wait.  A
request appends one entry to a list.  At each tick the entries become counters and lines, which costs a third
of what the same work costs entry by entry; but half a millisecond of it at once would be the p99 of the
requests that come meanwhile, so it is done in pieces, and requests go in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

from twofold.logs import records, writer
from twofold.telemetry.counters import Counters

COUNTED_AT_ONCE: Final = 500  # entries: 0.1 to 0.2 ms
PIECE: Final = 30  # entries made into lines at a time: 50 us, when nothing of it is in the caches
MOST_PIECES: Final = 8  # where there are more entries, requests wait longer for each other than for a piece

Entry = TypeVar("Entry")


class AccessJournal(Generic[Entry]):
    """`entries.append(...)` for each request, and `flush()` at each tick."""

    def __init__(
        self,
        counters: Counters,
        dropped: int,
        count: Callable[[list[int], list[Entry]], list[records.AccessRecord]],
        pipe: int,
        source: str,
    ) -> None:
        """`count(cells, entries)` adds entries to the counters, and returns their access records.

        `dropped` is the cell that counts lines for which the log writer had no room; `pipe` is the writing
        end of its pipe, or -1 where there is no access log; `source` is named in every line.
        """
        self.entries: list[Entry] = []
        self.counters = counters
        self.cells = counters.cells
        self._dropped = dropped
        self._count = count
        self._lines = records.AccessLog(source)
        self._pipe = writer.PipeWriter(pipe) if pipe >= 0 else None
        self._work: Iterator[None] | None = None  # what is left to do of the last flush

    def flush(self) -> None:
        """Begin to turn entries into counters and lines, unless that is under way."""
        if self._work is None:
            self._work = self._write_down()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        work, self._work = self._work, None
        if work is not None and next(work, self) is not self:
            self._work = work
            asyncio.get_running_loop().call_soon(self._go_on)

    def close(self) -> None:
        """Write down all that is left, at once."""
        for work in (self._work or (), self._write_down()):
            for _ in work:
                pass
        self._work = None

    def _write_down(self) -> Iterator[None]:
        """Piece by piece: the entries that were there when it began."""
        batch, self.entries[:] = self.entries[:], ()
        accessed: list[records.AccessRecord] = []
        for start in range(0, len(batch), COUNTED_AT_ONCE):
            accessed += self._count(self.cells, batch[start : start + COUNTED_AT_ONCE])
            if len(batch) > COUNTED_AT_ONCE:
                yield
        self.counters.flush()
        if self._pipe is not None and accessed:
            yield
            size = max(PIECE, -(-len(accessed) // MOST_PIECES))
            lines = []
            for start in range(0, len(accessed), size):
                lines.append(self._lines.format(accessed[start : start + size]))
                yield
            self._send(self._pipe, b"".join(lines))

    def _send(self, pipe: writer.PipeWriter, lines: bytes) -> None:
        self.cells[self._dropped] += pipe.write(lines)
        if pipe.pending:
            asyncio.get_running_loop().add_writer(pipe.fileno(), self._flush_pipe)

    def _flush_pipe(self) -> None:
        """The log writer has made room for lines that did not fit at once."""
        assert self._pipe is not None
        self._pipe.flush()
        if not self._pipe.pending:
            asyncio.get_running_loop().remove_writer(self._pipe.fileno())
