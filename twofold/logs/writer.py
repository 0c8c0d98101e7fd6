"""The log writer: the process that writes log files, so that requests do not wait for a disk.

    front ----pipe----+                     +--> log_dir/access.log    size-bounded, rotated
    replicas --pipe---+--> log writer (poll) ---+
    native text ------+                     +--> log_dir/predict.log   or all of it to stdout

Touches the fds that are passed to it, and its sinks; standard library only.

Only whole lines are written.  A writer's pipe end does not block: lines that do not fit are dropped and
counted.  A writer that dies within a line leaves an incomplete line in its pipe.  Its successor begins with
CANCEL, a byte that JSON cannot contain, and the log writer drops the incomplete line.

The log writer ends when all inputs have reached EOF, that is after every writer has ended.  At SIGUSR2 it
ends between two lines, and a successor continues with the same pipes.
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
BACKLOG = 4 * 1024 * 1024  # bytes that a writer buffers while the pipe is full
STREAMS = ("access", "predict")
BEAT_MS = 1000  # longest time between two heartbeats
MID_LINE_MS = 1000  # timeout for the rest of a line at the handover


@dataclass(frozen=True, slots=True)
class LogInput:
    """The reading end of a pipe. `wrap`: its lines are raw text and become records of the predict log."""

    fd: int
    stream: str  # one of STREAMS
    wrap: bool = False
    replica: int = -1  # index of the replica that writes the raw text; -1: unknown


@dataclass(frozen=True, slots=True)
class LogDestination:
    """The destination of the streams: files in `directory`, or stdout if it is empty."""

    directory: str = ""
    max_bytes: int = 100 * 1024 * 1024
    keep: int = 5
    source: str = "twofold"


def open_pipe() -> tuple[int, int]:
    """A pipe for log lines, (reading end, writing end), of PIPE_SIZE if permitted."""
    reading, writing = os.pipe()
    with contextlib.suppress(OSError):  # the user's limit for pipes is reached; the default is 64 KiB
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return reading, writing


class PipeWriter:
    """The only writer of a log pipe. Sends or drops whole lines, without blocking."""

    __slots__ = ("_backlog", "_fd", "_first", "pending")

    def __init__(self, fd: int) -> None:
        """Cancel an incomplete line of a dead predecessor. `fd` is made non-blocking."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._first = memoryview(CANCEL)  # the unsent rest of the first chunk
        self._backlog: deque[bytes] = deque()
        self.pending = len(CANCEL)  # unsent bytes
        self.flush()

    def write(self, lines: bytes) -> int:
        """Send whole lines; return the number of dropped lines, which is all or none."""
        if self.pending:
            self.flush()
        if self.pending and self.pending + len(lines) > BACKLOG:
            return lines.count(b"\n")
        self._backlog.append(lines)
        self.pending += len(lines)
        self.flush()
        return 0

    def fileno(self) -> int:
        """The fd of the pipe, to be watched while `pending`."""
        return self._fd

    def flush(self) -> None:
        """Send unsent bytes until the pipe is full; called when the fd is writable."""
        while self.pending:
            if not self._first:
                self._first = memoryview(self._backlog.popleft())
            try:
                sent = os.write(self._fd, self._first)
            except (
                BlockingIOError,
                BrokenPipeError,
            ):  # the pipe is full, or the log writer is being replaced
                return
            self._first = self._first[sent:]
            self.pending -= sent


class LineBuffer:
    """Splits the bytes of one pipe into whole lines."""

    __slots__ = ("_begun", "_raw", "_skipping", "torn")

    def __init__(self, raw: bool) -> None:
        """`raw`: any byte may occur, so CANCEL has no meaning, and the last line needs no line end."""
        self._raw = raw
        self._begun = b""
        self._skipping = False  # within a line that is too long
        self.torn = 0  # dropped lines, until the caller resets it

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
        """As feed(), with cancelled or overlong lines removed."""
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
        """At EOF: the incomplete last line."""
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
        """Write until every input is at EOF. `alarm`: an fd that yields the numbers of signals."""
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
        """Finish the lines that have begun; the successor reads the rest."""
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
    """No effect: the process has no watchdog."""


def run(
    inputs: Sequence[LogInput],
    destination: LogDestination,
    dropped: Callable[[str, int], None],
    beat: Callable[[], None] = _no_beat,
) -> None:
    """Run the log writer, in the main thread of its own process, until every writer has ended.

    SIGUSR1 and SIGHUP reopen the files; SIGUSR2 ends it between two lines; SIGINT and SIGTERM are ignored,
    because the writers still log while they stop.  `dropped(stream, lines)` is called when lines are dropped,
    and `beat()` at least once a second.
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
