"""An instance's own processes that hang: SIGSTOP, the hardest kind, to each of them, and to all at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.test_failures import child_named
from tests.support.eventually import eventually, never
from tests.support.instance_process import Instance, serve

EXAMPLES = Path(__file__).parents[2] / "examples"
BACK_S = 8.0  # from the stop to service as before
ROOM_S = 8.0  # for a machine that is busy
ALL_STOPPED_S = 6.0  # longer than the watchdog's patience


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with serve(EXAMPLES / "echo", tmp_path / "run", "--replicas", "2", "--fronts", "1") as served:
        yield served


@pytest.mark.parametrize("role", ["front", "log_writer", "fork_server"])
def test_a_stopped_process_is_replaced_and_health_tells(instance: Instance, role: str) -> None:
    stopped, began_s = child_named(instance, role), time.monotonic()
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: stopped not in instance.descendants(), f"the end of the {role}", BACK_S + ROOM_S)
    eventually(lambda: instance.predict([1]).status == 200, "service", BACK_S)
    assert time.monotonic() - began_s < BACK_S + ROOM_S
    name = {"front": "front 0"}.get(role, role.replace("_", " "))
    told = instance.health()["messages"]
    assert any(f"{name} hangs: no sign of life for 4 s" in message for message in told), told
    eventually(lambda: instance.health()["restarts"].get(role) == 1, "the restart is counted")
    assert child_named(instance, role) != stopped


@pytest.mark.parametrize("role", ["front", "fork_server"])
def test_a_process_that_stops_right_after_its_start_is_replaced(instance: Instance, role: str) -> None:
    """Most often before its first heartbeat: until then, only a stop counts."""
    first = child_named(instance, role)
    others = {instance.process.pid, *instance.descendants()}
    os.kill(first, signal.SIGKILL)
    eventually(lambda: instance.descendants() - others, f"a new {role}")
    (stopped,) = instance.descendants() - others
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: stopped not in instance.descendants(), f"the end of the {role}", BACK_S + ROOM_S)
    eventually(lambda: instance.predict([1]).status == 200, "service", BACK_S)
    assert any(" hangs: no sign of life" in message for message in instance.health()["messages"])


def test_an_abort_prints_where_a_front_is(instance: Instance) -> None:
    os.kill(child_named(instance, "front"), signal.SIGABRT)
    eventually(lambda: "Fatal Python error: Aborted" in instance.printed(), instance.printed)
    eventually(lambda: "process.py" in instance.printed(), instance.printed)


def test_a_stall_of_the_whole_machine_ends_nobody(instance: Instance) -> None:
    everybody = {instance.process.pid, *instance.descendants()}
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(ALL_STOPPED_S)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    assert instance.predict([1]).status == 200
    never(lambda: {instance.process.pid, *instance.descendants()} != everybody, "a process was ended", 1.0)
    assert "hangs" not in instance.printed()
