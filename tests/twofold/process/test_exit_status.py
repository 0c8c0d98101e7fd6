"""One sentence for how a process ended, whatever its status."""

from __future__ import annotations

import signal

import pytest

from twofold.process.exit_status import how


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-signal.SIGKILL, "killed by SIGKILL"),
        (-signal.SIGRTMIN, "killed by SIGRTMIN"),
        (-signal.SIGRTMIN - 1, f"killed by signal {signal.SIGRTMIN + 1}"),  # which has no name
        (-32, "killed by signal 32"),  # libc's own
    ],
)
def test_every_end_has_words(code: int, words: str) -> None:
    assert how(code) == words
