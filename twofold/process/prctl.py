"""Two process attributes of Linux, set through libc's prctl(): the death signal, and the adoption of orphans.

The supervisor adopts every orphan below it, and each child dies with its parent.  Therefore a SIGKILL of
the supervisor leaves no process behind.  `server/replica/prctl.py` has the same text for the model's
interpreter, which has nothing installed; a test compares the two.
"""

from __future__ import annotations

import ctypes
import os
import signal

EXIT_ORPHAN = 9
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "prctl(%d, %d): %s" % (option, value, os.strerror(number)))


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when `parent` ends; leave at once if it already has."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_ORPHAN)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
