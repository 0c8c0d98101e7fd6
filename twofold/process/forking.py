"""Fork a child that keeps none of its parent's signal settings; reap children that have ended.

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


def fork(life: Callable[[], int]) -> int:
    """The pid of a child that runs `life`, exits with its result and dies with this process.

    Raises OSError.  The child leads a process group; its handlers and mask are as if the parent had set none.
    """
    parent = os.getpid()
    # Until the child has reset its handlers they write into the parent's signal pipe: a signal that the
    # child gets before that would be read by the parent, as its own.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            _live(life, parent, before)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live(life: Callable[[], int], parent: int, mask: set[int | signal.Signals]) -> None:
    """Be the child; does not return."""
    code = int(ExitCode.INTERNAL)
    try:
        signals.reset()
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        faulthandler.enable()  # a SIGABRT of the watchdog prints where the child hangs
        os.setpgid(0, 0)
        prctl.die_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = life()
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
    dead: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return dead
        if not pid:
            return dead
        dead.append((pid, status))
