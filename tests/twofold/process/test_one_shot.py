"""Short-lived processes: their end in words, their time limit, and nothing left behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.instance_process import alive
from twofold.process import one_shot

PYTHON = sys.executable


def run(program: str, timeout: float = 20.0, given: bytes = b"") -> one_shot.ProcessOutcome:
    return one_shot.run([PYTHON, "-ISc", program], dict(os.environ), timeout, given)


def test_output_and_input() -> None:
    outcome = run("import sys; print(sys.stdin.read()[::-1]); sys.stderr.write('note')", given=b"abc")
    assert outcome == one_shot.ProcessOutcome(0, b"cba\n", "note")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit(3)", "exited with code 3"),
        ("import os; os.abort()", "was killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL (often: out of memory)"),
        ("import os; os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 37)", "was killed by signal 37"),
        ("raise ValueError('a reason')", "exited with code 1: ValueError: a reason"),
    ],
)  # fmt: skip
def test_end_in_words(program: str, words: str) -> None:
    assert run(program).complaint() == words


CHILD = "import subprocess, sys; c = subprocess.Popen(['sleep', '60']); print(c.pid, flush=True); "


@pytest.mark.parametrize(
    ("then", "code"), [("c.wait()", None), ("", 0), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_its_children_go_with_it(then: str, code: int | None) -> None:
    started = time.monotonic()
    outcome = run(CHILD + then, timeout=1.0)
    assert outcome.code == code
    assert time.monotonic() - started < 50, "the child sleeps for 60 s"
    child = int(outcome.output)
    eventually(lambda: not alive(child), "the end of its child")


def test_the_time_limit_ends_a_process_that_ignores_signals() -> None:
    program = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; time.sleep(60)"
    outcome = run(program, timeout=0.5)
    assert outcome.code is None and "still running" in outcome.end()


def test_long_output_keeps_its_end() -> None:
    outcome = run(
        "import sys; sys.stdout.write('x' * 20_000_000 + 'end'); sys.stderr.write('y' * 100_000 + 'end')"
    )
    assert len(outcome.output) == one_shot.MAX_OUTPUT and outcome.output.endswith(b"xend")
    assert len(outcome.errors) == one_shot.MAX_ERRORS and outcome.errors.endswith("yend")


def test_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        one_shot.run([str(tmp_path / "nothing")], {}, 1.0)
