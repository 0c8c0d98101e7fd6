"""The operator's line: one bounded line on standard error, which never blocks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

SAY = """
import sys
from twofold.logs.console import say
sys.exit(sum(not say('info', 'x' * 4000) for _ in range(99)))
"""


def run(stderr: int) -> int:
    root = Path(__file__).parents[3]
    return subprocess.run([sys.executable, "-c", SAY], stderr=stderr, cwd=root, timeout=20).returncode


def test_say_is_one_bounded_line() -> None:
    read, write = os.pipe()
    script = "from twofold.logs.console import say; say('warning', 'two\\nlines ' + 'é' * 9999)"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script], stderr=write, cwd=root, timeout=20, check=True)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        line = pipe.read()
    assert line.count(b"\n") == 1 and len(line) <= 4096
    assert b"warning two lines " in line


def test_say_does_not_wait_for_a_stuck_reader() -> None:
    read, write = os.pipe()
    try:
        started = time.monotonic()
        unsaid = run(write)
        assert 0 < unsaid < 99, "a pipe of 64 KiB takes some lines and then no more"
        assert time.monotonic() - started < 60
    finally:
        os.close(read)
        os.close(write)


def test_say_survives_a_full_device_and_a_closed_pipe() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    read, write = os.pipe()
    os.close(read)
    try:
        assert run(full) == 99
        assert run(write) == 99
    finally:
        os.close(full)
        os.close(write)
