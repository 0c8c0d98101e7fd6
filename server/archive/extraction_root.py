"""The extraction root: the folder that an archive is unpacked into, and cannot write outside of.

The order of the steps guarantees it:

    1. folders and files are made while the root has no symbolic link that a path could follow
    2. the target of a hard link is a file that was made before, and therefore is inside
    3. symbolic links are made last, after each was resolved in memory with all others in place

Owners, setuid bits and write permission for others are dropped.  Modification times are kept, because
compiled Python files are valid only with them.  The size that an archive declares is compared with the free
disk before it is written.  Touches the given folder only.
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
MAX_TARGET = 4096  # bytes of a symbolic link's target
MAX_HOPS = 40  # symbolic links in one path, as in the kernel
FILE_COST = 4096  # bytes of disk for an empty file
DISK_RESERVE = 64 << 20  # bytes of disk that stay free for other programs
MAX_MTIME_S = 1 << 33


class BadArchive(Exception):
    """The archive is damaged, of an unknown kind, or has an entry that could act outside the root."""


class ByteSource(Protocol):
    """The readable content of an entry or of an archive."""

    def read(self, size: int, /) -> bytes: ...


def parts_of(name: str) -> Parts:
    """The components of a path. Raises BadArchive if the path could be outside the root."""
    if name.startswith("/"):
        raise BadArchive(f"{name!r} is an absolute path")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in name:
        raise BadArchive(f"{name!r} leads out of the folder")
    return parts


class ExtractionRoot:
    """The folder that is filled, and the number of bytes that it may still take."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._free = shutil.disk_usage(root).free - DISK_RESERVE
        self._folders: set[Parts] = {()}
        self._links: dict[Parts, str] = {}

    def too_large(self) -> ResourceError:
        """The error of a full disk, for the caller to raise."""
        free = shutil.disk_usage(self._root).free / 1e6
        return ResourceError(
            f"not enough disk to unpack: {free:.0f} MB are free in {self._root}",
            "free some, or choose another folder with --cache-dir",
        )

    def needs(self, size: int, files: int = 1) -> None:
        """Check the free disk for `files` with `size` bytes in total. Raises ResourceError, BadArchive."""
        if size < 0:
            raise BadArchive("an entry has a negative size")
        if size + files * FILE_COST > self._free:
            raise self.too_large()

    def make_folder(self, parts: Parts, mode: int = 0o755) -> None:
        """Make a folder and its parents. Raises OSError, BadArchive, ResourceError."""
        if parts in self._folders:
            return
        self.make_folder(parts[:-1])
        self._take(0)
        self._path(parts).mkdir(mode & 0o755 | 0o700)
        self._folders.add(parts)

    def write_file(self, parts: Parts, mode: int, mtime_s: float, size: int, source: ByteSource) -> None:
        """Write `size` bytes of `source`; `mtime_s` is Unix time. Raises as make_folder."""
        path = self._claim_path(parts, size)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            remaining = size
            while remaining:
                chunk = source.read(min(remaining, CHUNK))
                if not chunk:
                    raise BadArchive(f"{'/'.join(parts)!r} is cut off")
                remaining -= len(chunk)
                while chunk:
                    chunk = chunk[file.write(chunk) :]
            os.fchmod(descriptor, mode & 0o755 | 0o600)
            kept_s = min(max(mtime_s, 0), MAX_MTIME_S)
            os.utime(descriptor, (kept_s, kept_s))

    def link_file(self, parts: Parts, target: str) -> None:
        """Make a hard link. Raises BadArchive if its target is not a file made before."""
        original = parts_of(target)
        path = self._claim_path(parts, 0)
        # No symbolic link exists yet, so this path is inside the root.
        if not stat.S_ISREG(self._kind(original)):
            raise BadArchive(f"{'/'.join(parts)!r} is a hard link to {target!r}, which is no file before it")
        os.link(self._path(original), path, follow_symlinks=False)

    def add_link(self, parts: Parts, target: str) -> None:
        """Record a symbolic link, which link_all() makes. Raises BadArchive."""
        name = "/".join(parts)
        if not parts or target.startswith("/") or not 0 < len(target) <= MAX_TARGET or "\0" in target:
            raise BadArchive(
                f"{name!r} is a symbolic link to {target[:200]!r}, which leads out of the folder"
            )
        self._take(0)
        self._links[parts] = target

    def link_all(self) -> None:
        """Make the recorded symbolic links. Raises BadArchive if one leads out of the root, or OSError."""
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
        """Whether the link leads out of the root, resolved as by the kernel with all links in place."""
        at, pending, hops = list(parts[:-1]), target.split("/")[::-1], 0
        while pending:
            step = pending.pop()
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
                pending.extend(onward.split("/")[::-1])
        return False

    def _claim_path(self, parts: Parts, size: int) -> Path:
        """The path for a new file: makes its folder, counts its size, and removes an earlier file there."""
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
        self._free -= size + FILE_COST

    def _path(self, parts: Parts) -> Path:
        return self._root.joinpath(*parts)
