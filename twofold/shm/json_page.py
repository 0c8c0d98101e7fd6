"""A page of shared memory that one process publishes as JSON and every other process may read at any time.

Touches only the given mapping: a 32-bit sequence at one offset, and two halves at another.
The writer fills the half that the sequence does not name, then raises the sequence.  A reader takes no lock:
a half is written again only after the other one was shown, so a reader whose sequence has not moved while it
read has read one whole text.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from typing import Any

_WORD = struct.Struct("<I")
_LAST_SEQUENCE = 0xFFFFFFFF
_TORN_READS = 100


class JsonPage:
    """One writer, many readers. `limit`: bytes that a text may have."""

    __slots__ = ("_half_size", "_memory", "_offset", "_sequence_offset", "limit")

    def __init__(self, memory: mmap.mmap, sequence_offset: int, offset: int, half_size: int) -> None:
        """The halves, of `half_size` bytes each, begin at `offset`."""
        self._memory = memory
        self._sequence_offset = sequence_offset
        self._offset = offset
        self._half_size = half_size
        self.limit = half_size - _WORD.size

    @property
    def sequence(self) -> int:
        """Moves on with every publication; 0: nothing was published."""
        return int(_WORD.unpack_from(self._memory, self._sequence_offset)[0])

    def publish(self, content: Mapping[str, Any]) -> None:
        """Publish `content`. Raises ValueError if it is too large; the last content stays then."""
        self.publish_text(json.dumps(content, separators=(",", ":")).encode())

    def publish_text(self, text: bytes) -> None:
        """Publish `text`, which is JSON already. Raises ValueError as `publish` does."""
        if len(text) > self.limit:
            raise ValueError(f"a text of {len(text)} bytes does not fit into a page of {self.limit}")
        sequence = self.sequence
        following = sequence + 1 if sequence < _LAST_SEQUENCE else 2  # the other half, and not 0
        start = self._offset + following % 2 * self._half_size
        _WORD.pack_into(self._memory, start, len(text))
        self._memory[start + _WORD.size : start + _WORD.size + len(text)] = text
        _WORD.pack_into(self._memory, self._sequence_offset, following)

    def read(self) -> dict[str, Any]:
        """The newest whole content; {} if nothing was published.

        Raises ValueError if the text is not JSON, and RuntimeError if it changes faster than it can be read.
        """
        for _ in range(_TORN_READS):
            sequence = self.sequence
            if not sequence:
                return {}
            start = self._offset + sequence % 2 * self._half_size
            size = min(int(_WORD.unpack_from(self._memory, start)[0]), self.limit)
            text = self._memory[start + _WORD.size : start + _WORD.size + size]
            if self.sequence == sequence:
                content: dict[str, Any] = json.loads(text)
                return content
        raise RuntimeError("a published page changed faster than it could be read")
