"""The heartbeat of a child: one 64-bit word of shared memory, stamped at each tick of its event loop.

Touches that word only.  The event loop itself must stamp the word: a separate thread would continue to stamp
while the loop hangs.
"""

from __future__ import annotations

from time import monotonic_ns

WORD_SIZE = 8


class Heartbeat:
    """The word is 0 until the first beat. The child is its only writer, the watchdog its only reader."""

    __slots__ = ("_index", "_words")

    def __init__(self, words: memoryview, index: int) -> None:
        """`words`: shared memory, cast to 64-bit words."""
        self._words = words
        self._index = index

    def beat(self) -> None:
        """Stamp the word with the monotonic time, in nanoseconds."""
        self._words[self._index] = monotonic_ns()
