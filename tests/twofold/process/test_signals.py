"""Signals as bytes in a pipe. Each scene is a process of its own, because handlers belong to a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
HEAD = """
import os, select, signal
from twofold.process.signals import CAUGHT, SignalPipe, reset

def come(pipe):
    assert select.select([pipe.fd], [], [], 5)[0], "no signal came"
    return sorted(pipe.read())

"""


def scene(text: str) -> int:
    """The exit code of a process that runs `text`."""
    return subprocess.run(
        [sys.executable, "-c", HEAD + text], cwd=ROOT, env=os.environ, timeout=20
    ).returncode


def test_signals_are_read_as_their_numbers() -> None:
    text = """
pipe = SignalPipe()
assert pipe.read() == b""
for number in CAUGHT:
    os.kill(os.getpid(), number)
assert come(pipe) == sorted(CAUGHT) and pipe.read() == b""
"""
    assert scene(text) == 0


def test_a_signal_that_comes_while_all_are_blocked_is_read_afterwards() -> None:
    text = """
pipe = SignalPipe()
with pipe.blocked():
    os.kill(os.getpid(), signal.SIGTERM)
    assert pipe.read() == b""
assert come(pipe) == [signal.SIGTERM]
"""
    assert scene(text) == 0


def test_what_was_blocked_by_the_program_before_is_read() -> None:
    text = """
signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)
os.kill(os.getpid(), signal.SIGHUP)
assert come(SignalPipe()) == [signal.SIGHUP]
"""
    assert scene(text) == 0


def test_nothing_is_caught_any_more_after_a_reset() -> None:
    text = """
pipe = SignalPipe()
signal.signal(signal.SIGUSR2, lambda number, stack: None)
reset()
assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
assert signal.set_wakeup_fd(-1) == -1
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert scene(text) == -signal.SIGTERM
