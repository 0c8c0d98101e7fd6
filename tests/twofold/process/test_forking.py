"""A forked child keeps none of its parent's signal settings, and is reaped once."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from twofold.errors import AddressError
from twofold.process.forking import IGNORED, fork, reap

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sleeps() -> int:
    time.sleep(20)
    return 0


def says(life: Callable[[], bytes]) -> bytes:
    """What `life` returns in a forked child."""
    reading, writing = os.pipe()

    def told() -> int:
        os.write(writing, life())
        return 0

    pid = fork(told)
    os.close(writing)
    try:
        assert end_of(pid) == 0
        return os.read(reading, 4096)
    finally:
        os.close(reading)


@pytest.fixture
def supervisor() -> Iterator[None]:
    """This process, with handlers, a wakeup descriptor and a mask such as a supervisor has."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    before = {number: signal.signal(number, lambda number, stack: None) for number in CAUGHT}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGWINCH,))
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.set_wakeup_fd(wakeup)
    for number, handler in before.items():
        signal.signal(number, handler)
    os.close(reading)
    os.close(writing)


@pytest.mark.usefixtures("supervisor")
def test_a_child_has_none_of_the_parents_handlers() -> None:
    def life() -> bytes:
        caught = [number for number in signal.valid_signals() if callable(signal.getsignal(number))]
        ignored = [number for number in CAUGHT if signal.getsignal(number) is signal.SIG_IGN]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return repr((caught, ignored, signal.set_wakeup_fd(-1), sorted(mask))).encode()

    ignored = [number for number in CAUGHT if number in IGNORED]
    assert says(life) == repr(([], ignored, -1, [signal.SIGWINCH])).encode()


@pytest.mark.usefixtures("supervisor")
def test_the_parent_keeps_its_own() -> None:
    handlers = {number: signal.getsignal(number) for number in CAUGHT}
    assert end_of(fork(lambda: 0)) == 0
    assert {number: signal.getsignal(number) for number in CAUGHT} == handlers
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.usefixtures("supervisor")
def test_a_child_that_is_told_to_end_ends_however_early() -> None:
    for _ in range(20):
        pid = fork(sleeps)
        os.kill(pid, signal.SIGTERM)
        assert end_of(pid) == -signal.SIGTERM


def test_a_child_leads_a_process_group() -> None:
    assert says(lambda: b"%d" % (os.getpgrp() == os.getpid())) == b"1"


def test_the_exit_code_is_the_lifes_or_the_errors(capfd: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> int:
        raise error

    assert end_of(fork(lambda: 7)) == 7
    bound = AddressError("cannot bind", "choose another")
    assert end_of(fork(lambda: fails(bound))) == AddressError.exit_code
    assert "error   cannot bind (choose another)" in capfd.readouterr().err
    assert end_of(fork(lambda: fails(SystemExit(5)))) == 1
    assert end_of(fork(lambda: fails(ValueError("a bug")))) == 1
    assert "ValueError: a bug" in capfd.readouterr().err


def test_a_child_dies_with_its_parent() -> None:
    reading, writing = os.pipe()

    def parent() -> int:
        fork(sleeps)
        return 0

    assert end_of(fork(parent)) == 0
    os.close(writing)  # the grandchild had it, too
    assert select.select([reading], [], [], 5)[0] and os.read(reading, 1) == b""
    os.close(reading)


def test_every_end_is_reaped_once() -> None:
    def life() -> bytes:  # in a process of its own: this one has children of other tests
        before = reap()
        pids = {fork(partial(int, code)): code for code in (0, 3)}
        ends: dict[int, int] = {}
        until = time.monotonic() + 5
        while len(ends) < len(pids) and time.monotonic() < until:
            ends.update({pid: os.waitstatus_to_exitcode(status) for pid, status in reap()})
        return repr((before, ends == pids, reap())).encode()

    assert says(life) == b"([], True, [])"
