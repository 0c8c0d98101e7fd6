"""The program itself: signals that come before a supervisor catches them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys
from twofold import __main__
from twofold.process.signals import SignalPipe

def run(arguments):
    os.kill(os.getpid(), int(arguments[1]))  # before any supervisor
    if arguments[2] == "catch":
        assert list(SignalPipe().read()) == [int(arguments[1])]
    return 7

__main__.run = run
sys.exit(__main__.main())
"""


def outcome(command: str, number: int, then: str) -> int:
    """The exit code of a command that sends itself a signal before anything else."""
    words = [sys.executable, "-c", PROGRAM, command, str(int(number)), then]
    return subprocess.run(words, cwd=ROOT, timeout=20).returncode


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("command", ["serve", "balance"])
def test_a_reload_or_reopen_that_comes_early_waits_for_the_supervisor(command: str, number: int) -> None:
    assert outcome(command, number, "catch") == 7


def test_one_that_no_supervisor_takes_means_nothing() -> None:
    assert outcome("serve", signal.SIGHUP, "fail") == 7


def test_other_commands_end_with_their_terminal() -> None:
    assert outcome("check", signal.SIGHUP, "fail") == -signal.SIGHUP
