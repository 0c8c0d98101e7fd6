"""The journal of a process's requests, from which counters and access-log lines are made in batches.

Touches the block of counters and the pipe of the log writer, without blocking.  A request appends one entry
to a list.  At each tick the entries are converted, at a third of the cost of a conversion per entry.  The
batch is split into pieces, between which requests are served: half a millisecond at once would raise the p99.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

from twofold.logs import records, writer
from twofold.telemetry.counters import Counters

COUNTED_AT_ONCE: Final = 500  # entries: 0.1 to 0.2 ms
PIECE: Final = 30  # entries formatted at a time: 50 us with cold caches
MOST_PIECES: Final = 8  # per flush; with more entries, requests wait longer for each other than for a piece

Entry = TypeVar("Entry")


class AccessJournal(Generic[Entry]):
    """Call `entries.append(...)` for each request, and `flush()` at each tick."""

    def __init__(
        self,
        counters: Counters,
        dropped: int,
        count: Callable[[list[int], list[Entry]], list[records.AccessRecord]],
        pipe: int,
        source: str,
    ) -> None:
        """`count(cells, entries)` adds entries to the counters, and returns their access records.

        `dropped`: the cell that counts lines dropped because the pipe is full; `pipe`: its writing end, or
        -1 without an access log; `source`: the `source` of every line.
        """
        self.entries: list[Entry] = []
        self.counters = counters
        self.cells = counters.cells
        self._dropped = dropped
        self._count = count
        self._lines = records.AccessLog(source)
        self._pipe = writer.PipeWriter(pipe) if pipe >= 0 else None
        self._work: Iterator[None] | None = None  # the rest of the flush in progress

    def flush(self) -> None:
        """Begin to convert the entries, unless a flush is in progress."""
        if self._work is None:
            self._work = self._write_down()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        work, self._work = self._work, None
        if work is not None and next(work, self) is not self:
            self._work = work
            asyncio.get_running_loop().call_soon(self._go_on)

    def close(self) -> None:
        """Convert and write all entries at once."""
        for work in (self._work or (), self._write_down()):
            for _ in work:
                pass
        self._work = None

    def _write_down(self) -> Iterator[None]:
        """Convert the present entries in pieces, with a yield after each."""
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
        """The pipe is writable again: send the pending lines."""
        assert self._pipe is not None
        self._pipe.flush()
        if not self._pipe.pending:
            asyncio.get_running_loop().remove_writer(self._pipe.fileno())
