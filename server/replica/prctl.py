"""Which process ends with its parent, and which adopts: two attributes of Linux, set by libc's prctl().

Standard library only, Python 3.7 to 3.14.  `twofold/process/prctl.py` has the same text for our own
processes; a test compares the two.
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
