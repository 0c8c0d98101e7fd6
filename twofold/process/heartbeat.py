"""A child's sign of life: one 64-bit word of shared memory, stamped at each tick of its event loop.

Touches that word only.  A stamp comes from the loop that does the work, never from a thread beside it: a
thread would go on while the loop hangs.
"""

from __future__ import annotations

from time import monotonic_ns

WORD_SIZE = 8


class Heartbeat:
    """The word is zero until the first beat. One writer, the child; one reader, the watchdog."""

    __slots__ = ("_index", "_words")

    def __init__(self, words: memoryview, index: int) -> None:
        """`words`: shared memory, cast to 64-bit words."""
        self._words = words
        self._index = index

    def beat(self) -> None:
        self._words[self._index] = monotonic_ns()
