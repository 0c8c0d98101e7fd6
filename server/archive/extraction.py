"""The folder into which an archive is unpacked, and which it cannot leave, whatever it holds.

Nothing in an archive may act outside the folder.  The order of the work makes it so:

    1. folders and files are made while the folder holds no symbolic link that a path could follow
    2. hard links name a file that was made before, and so lies inside
    3. symbolic links come last, after each was walked through all the others, in memory

Owners, setuid bits and write permission for others are dropped; modification times are kept, because
compiled Python files are only valid with them.  What an archive claims to hold is set against the
free disk before it is written.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Protocol

from twofold.errors import ResourceError

Parts = tuple[str, ...]

CHUNK = 1 << 20
MAX_TARGET = 4096
MAX_HOPS = 40  # as the kernel
FILE_COST = 4096  # bytes of disk that even an empty file takes
DISK_RESERVE = 64 << 20  # bytes left free for everybody else
LAST_TIME = 1 << 33


class BadArchive(Exception):
    """The archive is broken, of an unknown kind, or wants something that no honest archive wants."""


class ByteSource(Protocol):
    def read(self, size: int, /) -> bytes: ...


def parts_of(name: str) -> Parts:
    """The folders and the name; BadArchive if they could mean a place outside."""
    if name.startswith("/"):
        raise BadArchive(f"{name!r} is an absolute path")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in name:
        raise BadArchive(f"{name!r} leads out of the folder")
    return parts


class ExtractionRoot:
    """The folder that fills up, and what of the disk it may still take."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._left = shutil.disk_usage(root).free - DISK_RESERVE
        self._folders: set[Parts] = {()}
        self._links: dict[Parts, str] = {}

    def too_large(self) -> ResourceError:
        free = shutil.disk_usage(self._root).free / 1e6
        return ResourceError(
            f"not enough disk to unpack: {free:.0f} MB are free in {self._root}",
            "free some, or choose another folder with --cache-dir",
        )

    def needs(self, size: int, files: int = 1) -> None:
        """ResourceError unless the disk has room for `files` with `size` bytes together."""
        if size < 0:
            raise BadArchive("an entry has a negative size")
        if size + files * FILE_COST > self._left:
            raise self.too_large()

    def make_folder(self, parts: Parts, mode: int = 0o755) -> None:
        if parts in self._folders:
            return
        self.make_folder(parts[:-1])
        self._take(0)
        self._path(parts).mkdir(mode & 0o755 | 0o700)
        self._folders.add(parts)

    def write_file(self, parts: Parts, mode: int, mtime: float, size: int, source: ByteSource) -> None:
        path = self._place(parts, size)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            left = size
            while left:
                chunk = source.read(min(left, CHUNK))
                if not chunk:
                    raise BadArchive(f"{'/'.join(parts)!r} is cut off")
                left -= len(chunk)
                while chunk:
                    chunk = chunk[file.write(chunk) :]
            os.fchmod(descriptor, mode & 0o755 | 0o600)
            seconds = min(max(mtime, 0), LAST_TIME)
            os.utime(descriptor, (seconds, seconds))

    def link_file(self, parts: Parts, target: str) -> None:
        """A hard link. Its target was made before, or the archive is refused."""
        original = parts_of(target)
        path = self._place(parts, 0)
        # No symbolic link exists yet, so this path cannot lead anywhere else.
        if not stat.S_ISREG(self._kind(original)):
            raise BadArchive(f"{'/'.join(parts)!r} is a hard link to {target!r}, which is no file before it")
        os.link(self._path(original), path, follow_symlinks=False)

    def add_link(self, parts: Parts, target: str) -> None:
        """A symbolic link, made in the end."""
        name = "/".join(parts)
        if not parts or target.startswith("/") or not 0 < len(target) <= MAX_TARGET or "\0" in target:
            raise BadArchive(
                f"{name!r} is a symbolic link to {target[:200]!r}, which leads out of the folder"
            )
        self._take(0)
        self._links[parts] = target

    def link_all(self) -> None:
        for parts, target in self._links.items():
            if self._escapes(parts, target):
                raise BadArchive(f"{'/'.join(parts)!r} is a symbolic link that leads out of the folder")
            if any(parts[:depth] in self._links for depth in range(1, len(parts))):
                raise BadArchive(f"{'/'.join(parts)!r} lies behind a symbolic link")
            self.make_folder(parts[:-1])
        for parts, target in self._links.items():
            if self._kind(parts):
                raise BadArchive(f"{'/'.join(parts)!r} is a symbolic link and something else as well")
            os.symlink(target, self._path(parts))

    def _escapes(self, parts: Parts, target: str) -> bool:
        """Follow the link as the kernel would, with every link of the archive in place."""
        at, todo, hops = list(parts[:-1]), target.split("/")[::-1], 0
        while todo:
            step = todo.pop()
            if step == "..":
                if not at:
                    return True
                at.pop()
            elif step not in ("", "."):
                onward = self._links.get((*at, step))
                if onward is None:
                    at.append(step)
                    continue
                hops += 1
                if hops > MAX_HOPS:
                    raise BadArchive(f"{'/'.join(parts)!r} is a symbolic link that goes round in circles")
                todo.extend(onward.split("/")[::-1])
        return False

    def _place(self, parts: Parts, size: int) -> Path:
        """The path for a new file, with its folder made, room taken, and an earlier one of its name gone."""
        if not parts:
            raise BadArchive("a file without a name")
        self._take(size)
        self.make_folder(parts[:-1])
        path = self._path(parts)
        if stat.S_ISREG(self._kind(parts)):
            path.unlink()  # a later entry replaces an earlier one, as in `tar --append`
        return path

    def _kind(self, parts: Parts) -> int:
        try:
            return os.lstat(self._path(parts)).st_mode
        except FileNotFoundError:
            return 0

    def _take(self, size: int) -> None:
        self.needs(size)
        self._left -= size + FILE_COST

    def _path(self, parts: Parts) -> Path:
        return self._root.joinpath(*parts)
