"""Messages for the operator on standard error.

Touches standard error, without blocking.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import time

MAX_SAY = 4096  # bytes; PIPE_BUF, so that lines of several processes do not mix


def say(level: str, message: str) -> bool:
    """Write one line to stderr. False if stderr cannot take it without blocking; the line is then lost."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S")
    line = f"{moment} {level:<7} {' '.join(message.split())}".encode("utf-8", "replace")
    try:
        fd = sys.__stderr__.fileno() if sys.__stderr__ else 2
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        # A pipe that polls writable has room for PIPE_BUF bytes, so this write does not block.
        if not stat.S_ISREG(os.fstat(fd).st_mode) and not poll.poll(0):
            return False
        return os.write(fd, line[: MAX_SAY - 1] + b"\n") > 0
    except (OSError, ValueError):  # stderr is closed or full
        return False
