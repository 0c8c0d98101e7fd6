"""Unpacks an archive that nobody has vouched for into a fresh folder: tar (gz, bz2, xz) or zip.

server/tree.py sees to it that nothing leaves the folder; here is what each format calls things.
Devices, fifos and sockets are refused.  Writes below the given folder and nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from twofold.errors import ResourceError
from twofold.server.archive.extraction import MAX_TARGET, BadArchive, ExtractionRoot, parts_of
from twofold.server.archive.tar_stream import TarHeader, TarStream, decompressed

Progress = Callable[[int, int], None]  # bytes done, of all

FULL = (errno.ENOSPC, errno.EDQUOT)
HOSTILE = (
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EILSEQ,
    None,  # gzip and bz2 raise OSError for damage
)


def unpack(archive: Path, folder: Path, progress: Progress) -> None:
    """Unpack into the empty `folder`. BadArchive or ResourceError, and then half of it may be there."""
    tree = ExtractionRoot(folder)
    try:
        with archive.open("rb") as raw:
            if zipfile.is_zipfile(raw):
                raw.seek(0)
                _unpack_zip(raw, tree, progress)
            else:
                raw.seek(0)
                _unpack_tar(raw, tree, progress)
        tree.link_all()
    except OSError as error:
        if error.errno in FULL:
            raise tree.too_large() from None
        if error.errno in HOSTILE:
            raise BadArchive(error.strerror or str(error)) from None
        raise ResourceError(
            f"cannot unpack {archive}: {error.strerror}", "check the folder's permissions"
        ) from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BadArchive(f"damaged or cut off: {error}") from None
    # A chain of 1000 headers, an encrypted or unknown zip method, numbers and names that are none.
    except (RecursionError, RuntimeError, NotImplementedError, ValueError, OverflowError) as error:
        raise BadArchive(str(error)) from None


# ---------------------------------------------------------------------- zip


def _unpack_zip(raw: IO[bytes], tree: ExtractionRoot, progress: Progress) -> None:
    with zipfile.ZipFile(raw) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        tree.needs(total, len(entries))
        done = 0
        for entry in entries:
            _unpack_entry(archive, entry, tree)
            done += entry.file_size
            progress(done, total)


def _unpack_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, tree: ExtractionRoot) -> None:
    mode = entry.external_attr >> 16
    kind, parts = stat.S_IFMT(mode), parts_of(entry.filename)
    if entry.is_dir():
        tree.make_folder(parts, mode or 0o755)
    elif kind == stat.S_IFLNK:
        with archive.open(entry) as source:
            tree.add_link(parts, os.fsdecode(source.read(MAX_TARGET + 1)))
    elif kind in (0, stat.S_IFREG):
        with archive.open(entry) as source:
            tree.write_file(parts, mode or 0o644, _zip_time(entry), entry.file_size, source)
            if source.read(1):  # and this is where zipfile compares the checksum
                raise BadArchive(f"{entry.filename!r} is longer than it says")
    else:
        raise BadArchive(f"{entry.filename!r} is a device or another special file")


def _zip_time(entry: zipfile.ZipInfo) -> float:
    try:
        return time.mktime((*entry.date_time, 0, 0, -1))
    except (ValueError, OverflowError):  # month 0 and the like: zips without a time
        return 0


# ---------------------------------------------------------------------- tar


def _unpack_tar(raw: IO[bytes], tree: ExtractionRoot, progress: Progress) -> None:
    total = os.fstat(raw.fileno()).st_size
    tree.needs(total)  # a compressed archive only grows
    tape = TarStream(decompressed(raw), lambda: progress(raw.tell(), total))
    with tarfile.open(fileobj=tape, mode="r:", tarinfo=TarHeader) as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            _unpack_member(archive, member, tree)
            archive.members.clear()  # which tarfile would keep: 50 MB for a large environment
    tape.finish()
    progress(total, total)


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, tree: ExtractionRoot) -> None:
    parts = parts_of(member.name)
    if member.isdir():
        tree.make_folder(parts, member.mode)
    elif member.issym():
        tree.add_link(parts, member.linkname)
    elif member.islnk():
        tree.link_file(parts, member.linkname)
    elif member.isreg():
        source = archive.extractfile(member)
        assert source is not None  # it is for regular files
        tree.write_file(parts, member.mode, member.mtime, member.size, source)
    else:
        raise BadArchive(f"{member.name!r} is a device or another special file")
