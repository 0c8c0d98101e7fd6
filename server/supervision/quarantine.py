"""Quarantine: bodies that killed two replicas are refused for a time, and kept on disk for inspection.

Touches the quarantine cells and one control word in shared memory, and a folder.  Only the supervisor
writes the cells.  Fronts compare digests with the cells while the control word is not 0.
"""

from __future__ import annotations

import hashlib
import mmap
import time
from pathlib import Path

from twofold.server.replica import slots


class Quarantine:
    """Bodies are refused for `refuse_s` seconds; `folder` keeps at most `max_bytes` bytes of bodies."""

    def __init__(self, memory: mmap.mmap, folder: Path, refuse_s: float, max_bytes: int) -> None:
        self._memory = memory
        self._folder = folder
        self._refuse_s = refuse_s
        self._max_bytes = max_bytes
        self._next = 0

    def add(self, body: bytes, now_ns: int) -> str:
        """Refuse this body from now on. Returns where it is kept, or why it is not.

        `now_ns`: monotonic time.  An error of the disk is part of the result, and not raised.
        """
        digest = hashlib.blake2b(body, digest_size=slots.DIGEST_SIZE).digest()
        offset = slots.QUARANTINE_OFFSET + self._next * slots.QUARANTINE_CELL.size
        self._next = (self._next + 1) % slots.QUARANTINE_CELLS
        slots.QUARANTINE_CELL.pack_into(self._memory, offset, digest, now_ns + int(self._refuse_s * 1e9), 0)
        self.expire(now_ns)
        return self._keep(body, digest)

    def expire(self, now_ns: int) -> None:
        """Recount the cells that have not expired; at 0 the fronts compute no digest."""
        held = 0
        for cell in range(slots.QUARANTINE_CELLS):
            offset = slots.QUARANTINE_OFFSET + cell * slots.QUARANTINE_CELL.size
            held += slots.QUARANTINE_CELL.unpack_from(self._memory, offset)[1] > now_ns
        slots.CONTROL.pack_into(self._memory, slots.QUARANTINED, held)

    def _keep(self, body: bytes, digest: bytes) -> str:
        if len(body) > self._max_bytes:
            return f"its body of {len(body)} bytes is larger than quarantine_mb and was not kept"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(len(body))
            path = self._folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{digest.hex()}.body"
            path.touch(mode=0o600)
            path.write_bytes(body)
        except OSError as error:
            return f"its body could not be kept in {self._folder}: {error.strerror}"
        return f"its body is kept in {path}"

    def _make_room(self, size: int) -> None:
        """Delete the oldest bodies until `size` bytes fit. Raises OSError."""
        kept = sorted(self._folder.glob("*.body"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in kept) + size
        for path in kept:
            if total <= self._max_bytes:
                return
            total -= path.stat().st_size
            path.unlink()
