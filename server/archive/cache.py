"""A folder of things that are made once, each under the hash of what it was made from.

    KEY/          what was made; valid only while KEY.ready exists
    KEY.ready     the last step: everything before it may have been cut off
    .KEY.part/    being made, renamed to KEY when it is full
    .KEY.lock     held with flock() by whoever makes KEY

Whoever holds a key's lock knows that every half-made thing under that key belongs to the dead, since
the kernel drops the lock with the process, whatever ended it.  A child that works on KEY inherits the
lock, so it holds until the last of them has gone.
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
    """Things of one kind. Nothing is made or touched before it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ready(self, key: str) -> Path | None:
        """The finished thing, or None. Takes no lock and writes nothing, so it works on read-only disks."""
        folder = self.folder / key
        return folder if self._mark(key).exists() and folder.is_dir() else None

    def make(
        self,
        key: str,
        fill: Callable[[Path], None],
        finish: Callable[[Path, int], None] = lambda folder, lock: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> Path:
        """The thing under `key`; `fill` a fresh folder and `finish` it in its final place if it is not there.

        `finish` also gets the lock's descriptor, for its children.  `waiting` is called when another
        process is at it.  What `fill` and `finish` raise goes on, after everything was removed.
        ResourceError when the folder cannot be written.
        """
        found = self.ready(key)
        if found:
            return found
        with self.locked(key, waiting) as lock:
            found = self.ready(key)  # by the one we waited for
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
        """Hold the lock of `key`; yields its descriptor."""
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
        """Remove what processes that are gone left half made."""
        for path in self.folder.iterdir():
            key = path.name.removeprefix(".").removesuffix(".part")
            if not path.is_dir() or self.ready(key):
                continue
            lock = self._open_lock(key)
            try:
                # Its maker may have finished between the look and the lock.
                if _try_lock(lock) and not self.ready(key):
                    self._remove(key)
            finally:
                os.close(lock)

    def _remove(self, key: str) -> None:
        """Everything under `key` but its lock: unlinking that would let two processes hold it."""
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
