"""A cache of folders that are made once, each under a key: the hash of its source.

    KEY/          the entry; valid only while KEY.ready exists
    KEY.ready     made last: an entry without it is incomplete
    .KEY.part/    the entry while it is filled; renamed to KEY when complete
    .KEY.lock     locked with flock() by the process that makes KEY

The kernel releases a lock when its process ends.  Therefore an incomplete entry is abandoned if its lock is
free.  A child that works on KEY inherits the lock, which is released when the last of them has ended.

Touches the cache folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from twofold.errors import ResourceError


class Cache:
    """The entries of one kind, in `folder`, which is created when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ready(self, key: str) -> Path | None:
        """The complete entry, or None. Takes no lock and writes nothing: works on a read-only disk."""
        folder = self.folder / key
        return folder if self._mark(key).exists() and folder.is_dir() else None

    def make(
        self,
        key: str,
        fill: Callable[[Path], None],
        finish: Callable[[Path, int], None] = lambda folder, lock: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> Path:
        """The entry of `key`. If missing: `fill` an empty folder, move it to its final path, `finish` it.

        `finish` also gets the lock's descriptor, for its children.  `waiting` is called while another
        process holds the lock.  An exception of `fill` or `finish` is raised again after the entry was
        removed.  Raises ResourceError if the folder cannot be written.
        """
        found = self.ready(key)
        if found:
            return found
        with self.locked(key, waiting) as lock:
            found = self.ready(key)  # perhaps made while this process waited for the lock
            if found:
                return found
            part, final = self._part(key), self.folder / key
            try:
                with self._writing():
                    self._sweep()
                    self._remove(key)
                    part.mkdir(mode=0o700)
                fill(part)
                with self._writing():
                    part.rename(final)
                finish(final, lock)
                with self._writing():
                    self._mark(key).touch()
            except BaseException:
                self._remove(key)
                raise
            return final

    @contextmanager
    def locked(self, key: str, waiting: Callable[[], None]) -> Iterator[int]:
        """Hold the lock of `key`; yields its descriptor. Raises ResourceError."""
        with self._writing():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._open_lock(key)
        try:
            with self._writing():
                if not _try_lock(lock):
                    waiting()
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)

    def _sweep(self) -> None:
        """Remove the incomplete entries of processes that have ended."""
        for path in self.folder.iterdir():
            key = path.name.removeprefix(".").removesuffix(".part")
            if not path.is_dir() or self.ready(key):
                continue
            lock = self._open_lock(key)
            try:
                # Its maker may have completed it between the check and the lock.
                if _try_lock(lock) and not self.ready(key):
                    self._remove(key)
            finally:
                os.close(lock)

    def _remove(self, key: str) -> None:
        """Remove the entry, but not its lock: unlinking the lock would let two processes hold it."""
        self._mark(key).unlink(missing_ok=True)
        for folder in (self._part(key), self.folder / key):
            if folder.exists():
                shutil.rmtree(folder)

    def _open_lock(self, key: str) -> int:
        return os.open(self.folder / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _part(self, key: str) -> Path:
        return self.folder / f".{key}.part"

    def _mark(self, key: str) -> Path:
        return self.folder / f"{key}.ready"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"cannot write to the cache folder {self.folder}: {error.strerror}",
                "make it writable, or choose another with --cache-dir",
            ) from None


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
