"""The log writer: the one process that writes log files, so that no request ever waits for a disk.

    front ----pipe----+                     +--> log_dir/access.log    size-bounded, rotated
    replicas --pipe---+--> log writer (poll) ---+
    native text ------+                     +--> log_dir/predict.log   or all of it to stdout

Touches the fds that it is handed, and its sinks; standard library only, small.

No line is ever torn.  A writer's pipe end does not block: what does not fit is dropped by whole lines
and counted.  A writer that dies between two halves of a line leaves half a line in its pipe; its
successor begins with CANCEL, a byte that JSON cannot contain, and the log writer drops that half.

The log writer ends when all inputs have reached EOF, that is when every writer is gone: what a process
prints while it ends is still written.  Or it hands over, at SIGUSR2: it ends between two lines, and a
successor goes on with the same pipes.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import select
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twofold.logs.records import PredictLog
from twofold.logs.sinks import MAX_LINE, FileSink, StdoutSink, file_of

CANCEL = b"\x18"
CHUNK = 64 * 1024  # bytes taken from a pipe at once; four times as much costs twice the time
PIPE_SIZE = 1024 * 1024  # bytes; the most that an ordinary user may ask for
BACKLOG = 4 * 1024 * 1024  # bytes that a writer holds back while the log writer is late
STREAMS = ("access", "predict")
BEAT_MS = 1000  # at most, between two signs of life
MID_LINE_MS = 1000  # milliseconds that a writer may need for the second half of a line


@dataclass(frozen=True, slots=True)
class LogInput:
    """The reading end of a pipe. `wrap`: its lines are raw text and become records of the predict log."""

    fd: int
    stream: str  # one of STREAMS
    wrap: bool = False
    replica: int = -1  # whose raw text it is; -1: unknown


@dataclass(frozen=True, slots=True)
class LogDestination:
    """Where the streams go: files in `directory`, or stdout if it is empty."""

    directory: str = ""
    max_bytes: int = 100 * 1024 * 1024
    keep: int = 5
    source: str = "twofold"


def open_pipe() -> tuple[int, int]:
    """A pipe for log lines, (reading end, writing end), as large as the system lets it be."""
    reading, writing = os.pipe()
    with contextlib.suppress(OSError):  # the user's pipes hold enough already: 64 KiB must do
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return reading, writing


class PipeWriter:
    """The one writer of a log pipe: whole lines or nothing, and never a wait."""

    __slots__ = ("_backlog", "_fd", "_first", "pending")

    def __init__(self, fd: int) -> None:
        """Call off the half line that a dead predecessor may have left. `fd` becomes non-blocking."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._first = memoryview(CANCEL)  # what of the first chunk is not yet sent
        self._backlog: deque[bytes] = deque()
        self.pending = len(CANCEL)  # bytes held back
        self.flush()

    def write(self, lines: bytes) -> int:
        """Send whole lines; returns how many had to be dropped: all of them or none."""
        if self.pending:
            self.flush()
        if self.pending and self.pending + len(lines) > BACKLOG:
            return lines.count(b"\n")
        self._backlog.append(lines)
        self.pending += len(lines)
        self.flush()
        return 0

    def fileno(self) -> int:
        """The pipe's end, for a loop to watch: what it takes is far less than a second of a busy front."""
        return self._fd

    def flush(self) -> None:
        """Send what is held back as far as the pipe takes it; call it when `fd` is writable."""
        while self.pending:
            if not self._first:
                self._first = memoryview(self._backlog.popleft())
            try:
                sent = os.write(self._fd, self._first)
            except (BlockingIOError, BrokenPipeError):  # the log writer is late, or being replaced
                return
            self._first = self._first[sent:]
            self.pending -= sent


class LineBuffer:
    """Cuts what comes out of one pipe into whole lines."""

    __slots__ = ("_begun", "_raw", "_skipping", "torn")

    def __init__(self, raw: bool) -> None:
        """`raw`: any byte may occur, so CANCEL means nothing, and a last line needs no end."""
        self._raw = raw
        self._begun = b""
        self._skipping = False  # inside a line that is too long
        self.torn = 0  # lines dropped here since somebody set it to 0

    @property
    def inside(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._begun) or self._skipping

    def feed(self, chunk: bytes) -> bytes:
        """The whole lines that are complete with `chunk`."""
        if self._skipping or (CANCEL in chunk and not self._raw):
            return self._pick(self._begun + chunk)
        end = chunk.rfind(b"\n") + 1
        whole = self._begun + memoryview(chunk)[:end] if end else b""
        self._begin(chunk[end:] if end else self._begun + chunk)
        return whole

    def _begin(self, line: bytes) -> None:
        self._begun = line
        if len(line) > MAX_LINE:
            self._begun, self._skipping = b"", True
            self.torn += 1

    def _pick(self, data: bytes) -> bytes:
        """Likewise, where not all is to be kept."""
        if CANCEL in data and not self._raw:
            data = self._called_off(data)
        end = data.rfind(b"\n") + 1
        start = 0
        if self._skipping:
            start = data.find(b"\n") + 1
            self._skipping = not start
        self._begin(b"" if self._skipping else data[end:])
        return data[start:end]

    def rest(self) -> bytes:
        """At EOF: the line that was begun and never ended."""
        begun, self._begun = self._begun, b""
        if begun and not self._raw:
            self.torn += 1
            return b""
        return begun and begun + b"\n"

    def _called_off(self, data: bytes) -> bytes:
        *before, last = data.split(CANCEL)
        kept = []
        for part in before:
            whole = part.rfind(b"\n") + 1
            kept.append(part[:whole])
            self.torn += whole < len(part)
            self._skipping = False
        return b"".join(kept) + last


class LogWriter:
    """The loop from pipes to sinks."""

    def __init__(
        self, inputs: Sequence[LogInput], destination: LogDestination, dropped: Callable[[str, int], None]
    ) -> None:
        self._inputs = {each.fd: (each, LineBuffer(each.wrap)) for each in inputs}
        self._records = PredictLog(destination.source)
        self._dropped = dropped
        self._sinks: dict[str, FileSink | StdoutSink]
        if destination.directory:
            self._sinks = {
                stream: FileSink(
                    file_of(destination.directory, stream),
                    destination.max_bytes,
                    destination.keep,
                )
                for stream in STREAMS
            }
        else:
            self._sinks = dict.fromkeys(STREAMS, StdoutSink())

    def run(self, alarm: int, beat: Callable[[], None]) -> None:
        """Write until every input is at its end; from `alarm` come the numbers of signals."""
        poll = select.poll()
        for fd in (*self._inputs, alarm):
            poll.register(fd, select.POLLIN)
        while self._inputs:
            beat()
            for fd, _ in poll.poll(BEAT_MS):
                if fd == alarm:
                    if signal.SIGUSR2 in os.read(alarm, CHUNK):
                        return self._hand_over()
                    for sink in self._sinks.values():
                        sink.reopen()
                elif not self._take(fd):
                    poll.unregister(fd)
                    os.close(fd)
                    del self._inputs[fd]

    def _hand_over(self) -> None:
        """Finish the lines that have begun, and take nothing more: the rest is the successor's."""
        for fd, (_, lines) in self._inputs.items():
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            while lines.inside and poll.poll(MID_LINE_MS) and self._take(fd, 1):
                pass

    def _take(self, fd: int, most: int = CHUNK) -> bool:
        """Move one chunk from a pipe to its sink; False at EOF."""
        source, lines = self._inputs[fd]
        chunk = os.read(fd, most)
        whole = lines.feed(chunk) if chunk else lines.rest()
        if source.wrap and whole:
            texts = whole.split(b"\n")[:-1]
            whole = b"".join([self._records.format(text, source.replica) for text in texts])
        dropped = lines.torn
        if whole:
            dropped += self._sinks[source.stream].write(whole)
        if dropped:
            lines.torn = 0
            self._dropped(source.stream, dropped)
        return bool(chunk)


def _no_beat() -> None:
    """Nothing watches this process."""


def run(
    inputs: Sequence[LogInput],
    destination: LogDestination,
    dropped: Callable[[str, int], None],
    beat: Callable[[], None] = _no_beat,
) -> None:
    """Be the log writer, in the main thread of a process of its own, until every writer is gone.

    SIGUSR1 and SIGHUP reopen the files; SIGUSR2 ends it between two lines; SIGINT and SIGTERM are
    ignored, because others that end by them still have something to say.  `dropped(stream, lines)` is
    called when lines are lost, and `beat()` about once a second.
    """
    gc.freeze()  # what was inherited from the parent stays shared with it
    alarm, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, lambda _number, _stack: None)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    LogWriter(inputs, destination, dropped).run(alarm, beat)
