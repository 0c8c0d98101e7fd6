"""What a proxy writes down of its requests: counters and the access log, made in batches.

Touches the counters' block and the pipe of the scribe, and neither ever makes a request wait.
A batch costs a third of what the same work costs call by call.
"""

from __future__ import annotations

import asyncio
import mmap

from loadbalancer import memory
from server import log, scribe

PIECE = 200  # entries made into lines at a time: about half a millisecond

# the access record, bytes from the client, microseconds that its messages waited for bandwidth
Entry = tuple[log.AccessRecord, int, int]


class Journal:
    def __init__(self, shared: mmap.mmap, proxy: int, pipe: int, source: str) -> None:
        self.entries: list[Entry] = []
        self.counters = memory.Counters(shared, proxy)
        self.cells = self.counters.cells
        self._lines = log.AccessLog(source)
        self._pipe = scribe.PipeWriter(pipe) if pipe >= 0 else None

    def flush(self) -> None:
        """Turn entries into counters and lines, a piece at a time: requests go in between."""
        piece, self.entries[:PIECE] = self.entries[:PIECE], ()
        self._write_down(piece)
        if self.entries:
            asyncio.get_running_loop().call_soon(self.flush)
        else:
            self.counters.flush()

    def close(self) -> None:
        self._write_down(self.entries)
        self.entries.clear()
        self.counters.flush()

    def _write_down(self, piece: list[Entry]) -> None:
        count(self.cells, piece)
        if self._pipe is None or not piece:
            return
        self.cells[memory.ACCESS_DROPPED] += self._pipe.write(self._lines.format([e[0] for e in piece]))
        if self._pipe.pending:
            asyncio.get_running_loop().add_writer(self._pipe.fileno(), self._flush_pipe)

    def _flush_pipe(self) -> None:
        """The scribe has made room for lines that did not fit at once."""
        assert self._pipe is not None
        self._pipe.flush()
        if not self._pipe.pending:
            asyncio.get_running_loop().remove_writer(self._pipe.fileno())


def count(cells: list[int], batch: list[Entry]) -> None:
    latency, upstream, throttle = memory.LATENCY, memory.UPSTREAM, memory.THROTTLE
    for (_, _, status, upstream_us, _, sent, total_us), received, waited_us in batch:
        cells[memory.BYTES_IN] += received
        cells[memory.BYTES_OUT] += sent
        cells[memory.STATUS_CELL.get(status, memory.OTHER_STATUS)] += 1
        cells[latency + total_us.bit_length()] += 1
        cells[latency + memory.SUM] += total_us
        if upstream_us:
            cells[upstream + upstream_us.bit_length()] += 1
            cells[upstream + memory.SUM] += upstream_us
        if waited_us:
            cells[throttle + waited_us.bit_length()] += 1
            cells[throttle + memory.SUM] += waited_us
