"""Request ids of the contract's form: three groups of 32 hex digits, joined by slashes.

Pure but for the random prefix.  Nothing of ours is imported here.
"""

from __future__ import annotations

import os

_TWO_DIGITS = [b"%02X" % byte for byte in range(256)]


class RequestIds:
    """Ids of the contract's form: three groups of 32 hex digits, joined by slashes.

    The caller's id, where there is one, is the first group; the second is this process; the third
    is the request.  Unique by a random prefix and a counter: no randomness is drawn per request, and
    but for the last two digits the text is made once for 256 requests.
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
