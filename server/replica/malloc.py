"""Give freed memory back to the system after a large request.

Standard library only, Python 3.7 to 3.14.  glibc raises its threshold for returning memory with the
largest block that was freed: after one body of 10 MB, 20 MB stay with the process for good.
"""

from __future__ import annotations

import ctypes
from typing import Callable

LARGE = 1 << 20  # bytes of a body or an answer; below, a trim costs more than it gives


def trimmer() -> Callable[[], object]:
    """malloc_trim() where the C library has it (glibc), otherwise a function that does nothing."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return lambda: None
    return lambda: trim(0)
