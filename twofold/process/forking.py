"""Forks children with default signal settings, and reaps children that have ended.

Touches processes, and in the child the signals and the process group.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable

from twofold.errors import ExitCode, TwofoldError
from twofold.logs.console import say
from twofold.process import prctl, signals

# The supervisor handles Ctrl-C, hang-up and reload.  A child may install a handler of its own.
IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def fork(main: Callable[[], int]) -> int:
    """Fork a child that runs `main`, exits with its result, and is killed when this process ends.

    Returns its pid.  Raises OSError.  The child leads a process group.  It has the parent's signal mask, and
    default handlers for the signals that the parent catches.
    """
    parent = os.getpid()
    # Until the child has reset its handlers, they write into the parent's signal pipe.  The parent would take
    # a signal of the child for its own.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            _run_child(main, parent, before)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_child(main: Callable[[], int], parent: int, mask: set[int | signal.Signals]) -> None:
    """Run `main` in the child; does not return."""
    code = int(ExitCode.INTERNAL)
    try:
        signals.reset()
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        faulthandler.enable()  # on SIGABRT of the watchdog the child prints its stacks
        os.setpgid(0, 0)
        prctl.die_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = main()
    except TwofoldError as error:
        say("error", str(error))
        code = int(error.exit_code)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def reap() -> list[tuple[int, int]]:
    """(pid, wait status) of every child that has ended, adopted ones included."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended.append((pid, status))
