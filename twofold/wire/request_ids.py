"""Request ids in the contract's format: three groups of 32 hex digits, joined by slashes.

Pure except for the random prefix.
"""

from __future__ import annotations

import os

_TWO_DIGITS = [b"%02X" % byte for byte in range(256)]


class RequestIds:
    """Makes unique ids: CALLER/PROCESS/REQUEST.

    The first group is the caller's id, if it sent one; the second identifies this process; the third is a
    random prefix and a counter.  All digits but the last two are rendered once for 256 requests.
    """

    def __init__(self) -> None:
        self._caller, self._process, self._prefix = (
            os.urandom(size).hex().upper().encode() for size in (16, 16, 8)
        )
        self._count = 0
        self._turn_over()

    def _turn_over(self) -> None:
        self._tail = b"/%b/%b%014X" % (self._process, self._prefix, self._count >> 8)
        self._own = self._caller + self._tail

    def mint(self, caller: bytes) -> bytes:
        self._count = count = self._count + 1
        if not count & 255:
            self._turn_over()
        return (caller + self._tail if caller else self._own) + _TWO_DIGITS[count & 255]
