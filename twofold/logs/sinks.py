"""The sinks of log lines: a rotating file, or stdout. Both write only whole lines.

Touches its file, or stdout.  write() does not raise: it returns the number of dropped lines, reports once per
outage, and the next call retries.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
from collections.abc import Iterable
from pathlib import Path

from twofold.errors import ResourceError
from twofold.logs.console import say

MODE = 0o640  # of a log file
MAX_LINE = 1024 * 1024  # bytes; the log writer drops longer lines
PIPE_BUF = 4096  # bytes that a writable pipe or socket accepts without blocking
PATIENCE_S = 1.0  # after which a reader of stdout counts as stuck


def file_of(folder: str, stream: str) -> Path:
    return Path(folder) / f"{stream}.log"


def require_folder(folder: str, streams: Iterable[str]) -> None:
    """Make `folder` and the files of `streams` in it. No effect if `folder` is empty, which means stdout.

    Raises ResourceError if a file cannot be written.
    """
    if not folder:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for stream in streams:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            os.close(os.open(file_of(folder, stream), flags, MODE))
    except OSError as error:
        remedy = "choose another log_dir, or none for standard output"
        raise ResourceError(f"cannot write logs: {error.strerror}", remedy, folder) from None


class Outage:
    """Reports the beginning and the end of an outage, instead of each failure."""

    __slots__ = ("_lost", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._lost = 0

    def lost(self, lines: int, reason: str) -> int:
        """Record dropped lines; return their number."""
        if lines and not self._lost:
            say("error", f"{self._name}: {reason}; log lines are dropped until it can be written again")
        self._lost += lines
        return lines

    def over(self) -> None:
        """Record a successful write."""
        if self._lost:
            say("info", f"{self._name}: writing again, {self._lost} lines were dropped")
            self._lost = 0


class FileSink:
    """A log file, rotated to `path.1` ... `path.<keep>` before it grows beyond `max_bytes`."""

    __slots__ = ("_fd", "_keep", "_max_bytes", "_outage", "_path", "_size")

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._outage = Outage(str(path))
        self._fd = -1
        self._size = 0
        self.reopen()

    def write(self, lines: bytes) -> int:
        """Append whole lines; returns how many were dropped."""
        dropped = 0
        while lines:
            end = len(lines)
            if end > self._max_bytes:
                end = lines.rfind(b"\n", 0, self._max_bytes) + 1 or lines.find(b"\n") + 1
            dropped += self._append(lines[:end])
            lines = lines[end:]
        return dropped

    def _append(self, lines: bytes) -> int:
        written = 0
        try:
            if self._fd < 0:
                self._open()
            if self._size and self._size + len(lines) > self._max_bytes:
                self._rotate()
            view = memoryview(lines)
            while written < len(lines):
                written += os.write(self._fd, view[written:])
        except OSError as error:
            whole = lines.rfind(b"\n", 0, written) + 1
            self._give_up()
            return self._outage.lost(lines.count(b"\n", whole), error.strerror or str(error))
        self._size += written
        self._outage.over()
        return 0

    def reopen(self) -> None:
        """Open the path again, which is a new file after an external rotation."""
        self.close()
        try:
            self._open()
        except OSError as error:
            self._outage.lost(0, error.strerror or str(error))

    def close(self) -> None:
        """Close the file; the next write opens it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _give_up(self) -> None:
        """After a failed write: remove a partial line, and close the file."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # a device that fails here is mended when it is opened
                _mend(self._fd)
        self.close()

    def _open(self) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            self._size = _mend(fd)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def _rotate(self) -> None:
        self.close()
        try:
            if self._keep:
                for number in range(self._keep - 1, 0, -1):
                    if (older := Path(f"{self._path}.{number}")).exists():
                        older.replace(f"{self._path}.{number + 1}")
                self._path.replace(f"{self._path}.1")
            else:
                os.truncate(self._path, 0)
            self._open()
        except OSError as error:
            say("warning", f"{self._path}: cannot rotate: {error.strerror}; appending to it")
            self._open()
            self._size = 0  # so the next attempt comes after as many bytes again


def _mend(fd: int) -> int:
    """Remove an incomplete last line, left by a full disk or a kill; return the size in bytes."""
    size = os.fstat(fd).st_size
    if not size or not stat.S_ISREG(os.fstat(fd).st_mode):
        return 0
    if os.pread(fd, 1, size - 1) == b"\n":
        return size
    start = max(0, size - MAX_LINE)
    whole = start + os.pread(fd, size - start, start).rfind(b"\n") + 1
    os.ftruncate(fd, whole)
    return whole


class StdoutSink:
    """The process's stdout. With a stuck reader, lines are dropped instead of waiting."""

    __slots__ = ("_begun", "_fd", "_most", "_outage", "_poll", "_stuck")

    def __init__(self, fd: int = 1) -> None:
        self._fd, self._most = _without_blocking(fd)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._begun = b""  # the rest of a line that has been written in part
        self._stuck = False
        self._outage = Outage("stdout")

    def write(self, lines: bytes) -> int:
        """Send whole lines; returns how many were dropped."""
        data = self._begun + lines
        sent, reason = self._send(data)
        if sent == len(data):
            self._begun = b""
            self._outage.over()
            return 0
        whole = data.rfind(b"\n", 0, sent) + 1
        inside = sent > whole or (sent == 0 and bool(self._begun))
        end = data.find(b"\n", sent) + 1 if inside else sent
        self._begun = data[sent:end]
        return self._outage.lost(data.count(b"\n", end), reason)

    def reopen(self) -> None:
        """No effect."""

    def _send(self, data: bytes) -> tuple[int, str]:
        """(bytes sent, reason if not all)."""
        view = memoryview(data)
        sent = 0
        while sent < len(data):
            if not self._poll.poll(0 if self._stuck else int(PATIENCE_S * 1000)):
                self._stuck = True
                return sent, "its reader is stuck"
            try:
                sent += os.write(self._fd, view[sent : sent + self._most])
            except OSError as error:
                return sent, error.strerror or str(error)
            self._stuck = False
        return sent, ""


def _without_blocking(fd: int) -> tuple[int, int]:
    """(an fd for the same file that does not block, bytes that may be written to it at once).

    O_NONBLOCK is a flag of the open file description, which is shared with other processes, so a pipe or
    terminal is opened anew.  If that fails, writes of PIPE_BUF bytes after poll() do not block.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd, MAX_LINE
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{fd}", flags), MAX_LINE
        except OSError:  # it belongs to another user
            pass
    return fd, PIPE_BUF
