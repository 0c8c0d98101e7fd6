"""Bodies that killed two replicas: refused for a while, and kept on disk for inspection.

The supervisor alone writes the cells in shared memory; fronts compare digests with them, and only
while the control word says that there are any.
"""

from __future__ import annotations

import hashlib
import mmap
import time
from pathlib import Path

from twofold.server.replica import slots


class Quarantine:
    """`seconds` a body stays refused; at most `max_bytes` of bodies are kept in `folder`."""

    def __init__(self, memory: mmap.mmap, folder: Path, seconds: float, max_bytes: int) -> None:
        self._memory = memory
        self._folder = folder
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._next = 0

    def add(self, body: bytes, now_ns: int) -> str:
        """Refuse this body from now on; where it was kept, or why it was not."""
        digest = hashlib.blake2b(body, digest_size=slots.DIGEST_SIZE).digest()
        offset = slots.QUARANTINE_OFFSET + self._next * slots.QUARANTINE_CELL.size
        self._next = (self._next + 1) % slots.QUARANTINE_CELLS
        slots.QUARANTINE_CELL.pack_into(self._memory, offset, digest, now_ns + int(self._seconds * 1e9), 0)
        self.expire(now_ns)
        return self._keep(body, digest)

    def expire(self, now_ns: int) -> None:
        """Recount the cells that still hold, so that fronts may skip the hash again."""
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
        """The oldest bodies go first."""
        kept = sorted(self._folder.glob("*.body"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in kept) + size
        for path in kept:
            if total <= self._max_bytes:
                return
            total -= path.stat().st_size
            path.unlink()
