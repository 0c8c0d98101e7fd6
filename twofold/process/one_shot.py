"""A one-shot process: runs one command with a timeout, ends its descendants, and describes its end.

Touches that process and unnamed files.  The process leads a process group.  The group is killed when the
process has ended or its timeout is over, so that no descendant remains.  Its output goes to unnamed files:
a pipe would stay open while a descendant runs, and reading it would block.
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

MAX_OUTPUT = 4 << 20  # bytes kept from the end of standard output
MAX_ERRORS = 8192  # bytes kept from the end of standard error


@dataclass(frozen=True, slots=True)
class ProcessOutcome:
    """The result of a process. `code`: negative for a signal, None for a timeout."""

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
        """The end, and a line of standard error: one with "command not found", else the last one."""
        lines = self.errors.strip().splitlines()
        telling = [line for line in lines if "command not found" in line] or lines
        return f"{self.end()}: {telling[-1].strip()}" if telling else self.end()


def run(
    command: Sequence[str],
    variables: Mapping[str, str],
    timeout_s: float,
    given: bytes = b"",
    folder: Path | None = None,
    lock: int | None = None,
) -> ProcessOutcome:
    """Run `command` in `folder` for at most `timeout_s` seconds.

    `given` is its standard input.  `lock` is a descriptor with a flock(), which the process inherits.
    Raises OSError if it cannot start.
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
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        return ProcessOutcome(
            code, _tail(stdout, MAX_OUTPUT), _tail(stderr, MAX_ERRORS).decode("utf-8", "replace")
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    # The group exists while it has members, also without its leader; until then its number is not reused.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _tail(file: IO[bytes], size: int) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
    return file.read()
