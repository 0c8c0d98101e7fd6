"""A short-lived process that does one thing: bounded in time, ended whole, its end put into words.

It leads a process group of its own, and that group is killed when the process has ended or its time
is up, so nothing that it started stays behind.  What it writes goes to unnamed files, because a pipe
would stay open as long as any descendant lives, and would keep us waiting.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from twofold.process.exit_status import how

MAX_OUTPUT = 4 << 20  # bytes kept of the end of standard output
MAX_ERRORS = 8192


@dataclass(frozen=True, slots=True)
class ProcessOutcome:
    """How it ended. `code` is negative for a signal, None when its time was up."""

    code: int | None
    output: bytes
    errors: str

    def end(self) -> str:
        """How it ended, as a predicate: "exited with code 1", "was killed by SIGSEGV"."""
        if self.code is None:
            return "was still running when its time was up, and was killed"
        if self.code >= 0:
            return how(self.code)
        more = " (often: out of memory)" if self.code == -signal.SIGKILL else ""
        return f"was {how(self.code)}{more}"

    def complaint(self) -> str:
        """The end, and what it wrote to standard error: the last line, or the one that misses a command."""
        lines = self.errors.strip().splitlines()
        telling = [line for line in lines if "command not found" in line] or lines
        return f"{self.end()}: {telling[-1].strip()}" if telling else self.end()


def run(
    command: Sequence[str],
    variables: Mapping[str, str],
    timeout: float,
    given: bytes = b"",
    folder: Path | None = None,
    lock: int | None = None,
) -> ProcessOutcome:
    """Run `command` in `folder`, with `given` as its input, for at most `timeout` seconds.

    `lock` is a descriptor that it inherits, and with it a flock().  OSError if it cannot start.
    """
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin.write(given)
        stdin.seek(0)
        process = subprocess.Popen(
            list(command),
            env=dict(variables),
            cwd=folder,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=[] if lock is None else [lock],
            process_group=0,
        )
        code: int | None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        return ProcessOutcome(
            code, _tail(stdout, MAX_OUTPUT), _tail(stderr, MAX_ERRORS).decode("utf-8", "replace")
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    # The group outlives its leader while it has members, and no other gets its number until then.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _tail(file: IO[bytes], size: int) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
    return file.read()
