"""Which silence is a hang: arithmetic over made-up readings, and real processes that stop, spin and sleep."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from array import array
from functools import partial

import pytest

from tests.support.eventually import eventually
from twofold.process.heartbeat import Heartbeat
from twofold.process.watchdog import (
    KILL_AFTER_S,
    MAX_STEP_S,
    PATIENCE_S,
    START_PATIENCE_S,
    Alarm,
    Schedule,
    Watchdog,
    schedule_of,
)

SLEEPS = Schedule(False, 0, 0)
STEP_S = 0.25


class Child:
    """Readings of one child, and a watchdog over it, on a clock of its own."""

    def __init__(self) -> None:
        self.words = memoryview(array("Q", [0, 0])).cast("B").cast("Q")
        self.schedule = SLEEPS
        self.now_s = 100.0
        self.dog = Watchdog(self.words, lambda pid: self.schedule, self.now_s)
        self.dog.watch(1, 77)

    def pass_time(self, seconds: float, step_s: float = STEP_S) -> list[Alarm]:
        alarms: list[Alarm] = []
        for _ in range(round(seconds / step_s)):
            self.now_s += step_s
            alarms += self.dog.look(self.now_s)
        return alarms

    def beat(self) -> None:
        self.words[1] += 1


@pytest.fixture
def child() -> Child:
    made = Child()
    made.beat()
    made.pass_time(STEP_S)
    return made


def test_a_child_that_beats_is_left_alone(child: Child) -> None:
    for _ in range(100):
        child.beat()
        assert child.pass_time(1.0) == []


def test_silence_is_told_sigabrt_and_a_second_later_sigkill(child: Child) -> None:
    assert child.pass_time(PATIENCE_S - STEP_S) == []
    (alarm,) = child.pass_time(STEP_S)
    assert (alarm.index, alarm.pid, alarm.number) == (1, 77, signal.SIGABRT)
    assert child.pass_time(KILL_AFTER_S - STEP_S) == []
    assert {alarm.number for alarm in child.pass_time(2 * STEP_S)} == {signal.SIGKILL}


def test_a_beat_ends_the_silence(child: Child) -> None:
    child.pass_time(PATIENCE_S - STEP_S)
    child.beat()
    assert child.pass_time(PATIENCE_S) == []


def test_the_first_beat_may_take_long() -> None:
    child = Child()
    assert child.pass_time(START_PATIENCE_S - STEP_S) == []
    assert len(child.pass_time(2 * STEP_S)) == 1


def test_a_child_that_is_stopped_before_its_first_beat_hangs() -> None:
    child = Child()
    child.dog.watch(1, 77, math.inf)
    child.pass_time(START_PATIENCE_S)
    child.schedule = Schedule(False, 0, 0, stopped=True)
    assert not child.pass_time(PATIENCE_S - STEP_S)
    child.schedule = SLEEPS  # continued in time
    assert not child.pass_time(STEP_S)
    child.schedule = Schedule(False, 0, 0, stopped=True)
    assert not child.pass_time(PATIENCE_S - STEP_S)
    (alarm,) = child.pass_time(STEP_S)
    assert alarm.number == signal.SIGABRT
    alarms = child.pass_time(KILL_AFTER_S)
    assert [each.number for each in alarms] == [signal.SIGKILL]


def test_a_process_without_a_processor_is_not_to_blame(child: Child) -> None:
    """Runnable, and it does not run: all of that time is explained, however long it takes."""
    child.schedule = Schedule(True, 5, 0)
    assert child.pass_time(20 * PATIENCE_S) == []


def test_waits_that_have_ended_are_taken_off(child: Child) -> None:
    for _ in range(40):  # half of each step it waited, half of it it slept
        before = child.schedule
        child.schedule = Schedule(False, before.ran_ns, before.waited_ns + int(STEP_S / 2 * 1e9))
        assert child.pass_time(STEP_S) == [] or child.now_s > 100.0 + 2 * PATIENCE_S - STEP_S


def test_a_process_that_spins_hangs(child: Child) -> None:
    alarms: list[Alarm] = []
    for _ in range(round(PATIENCE_S / STEP_S) + 2):
        child.schedule = Schedule(True, child.schedule.ran_ns + int(STEP_S * 1e9), 0)
        alarms += child.pass_time(STEP_S)
    assert [alarm.number for alarm in alarms] == [signal.SIGABRT]


def test_a_supervisor_that_saw_nothing_blames_nobody(child: Child) -> None:
    """The machine stood still for a minute: that is one step."""
    child.now_s += 60.0
    assert child.dog.look(child.now_s) == []
    assert child.pass_time(PATIENCE_S - MAX_STEP_S - 2 * STEP_S) == []


def test_an_ended_child_is_forgotten(child: Child) -> None:
    child.dog.forget(1)
    assert child.pass_time(10 * PATIENCE_S) == []


def test_a_beat_is_a_time() -> None:
    words = memoryview(array("Q", [0, 0])).cast("B").cast("Q")
    before = time.monotonic_ns()
    Heartbeat(words, 1).beat()
    assert before <= words[1] <= time.monotonic_ns() and words[0] == 0


def is_idle(pid: int) -> bool:
    schedule = schedule_of(pid)
    return schedule is not None and not schedule.runnable


def test_what_the_kernel_says_of_real_processes() -> None:
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        eventually(lambda: (ran := schedule_of(spinning.pid)) and ran.ran_ns > 200_000_000, "its time", 20)
        ran = schedule_of(spinning.pid)
        assert ran is not None and ran.runnable
        os.kill(spinning.pid, signal.SIGSTOP)
        for pid in (spinning.pid, sleeping.pid):
            eventually(partial(is_idle, pid), "a process that wants no processor")
    finally:
        for process in (spinning, sleeping):
            process.kill()
            process.wait()
    assert schedule_of(spinning.pid) is None
