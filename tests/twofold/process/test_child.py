"""A child as its supervisor sees it: ready, asked to leave, ended, due again."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator

import pytest

from twofold.process import child as module
from twofold.process.backoff import Backoff
from twofold.process.child import Child, RestartPolicy

BACKOFF = Backoff(first_s=0.2, most_s=10.0)
SILENT = RestartPolicy(BACKOFF, healthy_s=1.0)
REPORTING = RestartPolicy(BACKOFF, healthy_s=1.0, reports=True)


@pytest.fixture
def started() -> Iterator[list[Child]]:
    """Children whose processes end with the test."""
    children: list[Child] = []
    yield children
    for each in children:
        each.send(signal.SIGKILL)
        if each.pid:
            os.waitpid(each.pid, 0)
            each.ended(0.0)


def waits(ready: int) -> int:
    time.sleep(20)
    return 0


def reports(ready: int) -> int:
    os.write(ready, b"r")
    return waits(ready)


def end(child: Child, now_s: float) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    child.ended(now_s)
    return code


def test_names_are_plain_words() -> None:
    assert Child("log_writer", SILENT, waits).name == "log writer"
    assert Child("front", SILENT, waits, 0).name == "front 0"


def test_a_child_that_reports_is_ready_when_it_has(started: list[Child]) -> None:
    child = Child("proxy", REPORTING, reports, 3)
    started.append(child)
    child.start(100.0)
    assert child.pid
    assert (child.ready, child.started_s) == (False, 100.0)
    assert select.select([child.ready_fd], [], [], 5)[0]
    child.read_readiness()
    assert (child.ready, child.ready_fd) == (True, -1)
    child.send(signal.SIGTERM)
    assert end(child, 102.0) == -signal.SIGTERM
    assert (child.pid, child.ready, child.failures, child.retry_at_s) == (0, False, 1, 102.0)


def test_the_end_of_a_child_that_never_reported_is_heard_without_readiness() -> None:
    child = Child("proxy", REPORTING, lambda ready: 3)
    child.start(100.0)
    assert select.select([child.ready_fd], [], [], 5)[0]
    child.read_readiness()
    assert not child.ready and end(child, 200.0) == 3


def test_a_child_that_does_not_report_has_no_pipe() -> None:
    child = Child("front", SILENT, lambda ready: 0 if ready == -1 else 1)
    child.start(100.0)
    assert child.ready_fd == -1
    assert end(child, 100.5) == 0


@pytest.mark.parametrize(
    ("policy", "ready", "lived_s", "failures"),
    [(SILENT, False, 1.5, 1), (SILENT, False, 0.5, 4), (REPORTING, True, 1.5, 1), (REPORTING, True, 0.5, 4),
     (REPORTING, False, 1.5, 4)],
)  # fmt: skip
def test_a_healthy_life_begins_the_count_again(
    policy: RestartPolicy, ready: bool, lived_s: float, failures: int
) -> None:
    child = Child("front", policy, waits, pid=77, ready=ready, started_s=100.0, failures=3)
    child.ended(100.0 + lived_s)
    assert child.failures == failures
    assert child.retry_at_s == 100.0 + lived_s + BACKOFF.delay_s(failures)


def test_it_is_due_after_its_delay_and_never_when_retired() -> None:
    child = Child("front", SILENT, waits)
    assert child.due(0.0)
    child.failed(100.0, 2)
    assert not child.due(100.1) and child.due(100.2)
    child.retired = True
    assert not child.due(200.0)
    child.retired, child.pid = False, 77
    assert not child.due(200.0)


def test_it_is_asked_to_leave_once(started: list[Child], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    child = Child("front", SILENT, waits)
    child.leave(signal.SIGTERM, 100.0, 5.0)  # there is no process to ask
    child.pid = 77
    child.leave(signal.SIGTERM, 101.0, 5.0)
    child.leave(signal.SIGTERM, 102.0, 5.0)
    assert sent == [(77, signal.SIGTERM)] and child.leave_by_s == 106.0


def test_a_fork_that_fails_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(module, "fork", lambda life: refused())
    child, before = Child("proxy", REPORTING, waits), len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        child.start(100.0)
    assert (child.pid, child.ready_fd) == (0, -1)
    assert len(os.listdir("/proc/self/fd")) == before
