"""Unpacks an untrusted archive into an empty folder: tar (plain, gz, bz2, xz) or zip.

extraction_root.py keeps every entry inside the folder; this module reads the two formats.  Devices, fifos and
sockets are refused.  Touches the archive and the given folder only.
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
from twofold.server.archive.extraction_root import MAX_TARGET, BadArchive, ExtractionRoot, parts_of
from twofold.server.archive.tar_stream import TarHeader, TarStream, decompressed

ByteProgress = Callable[[int, int], None]  # bytes done, total bytes

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
BAD_NAME = (
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EILSEQ,
    None,  # gzip and bz2 raise OSError without a number for damage
)


def unpack(archive: Path, folder: Path, progress: ByteProgress) -> None:
    """Unpack into the empty `folder`. Raises BadArchive or ResourceError; then `folder` may be incomplete."""
    root = ExtractionRoot(folder)
    try:
        with archive.open("rb") as raw:
            if zipfile.is_zipfile(raw):
                raw.seek(0)
                _unpack_zip(raw, root, progress)
            else:
                raw.seek(0)
                _unpack_tar(raw, root, progress)
        root.link_all()
    except OSError as error:
        if error.errno in DISK_FULL:
            raise root.too_large() from None
        if error.errno in BAD_NAME:
            raise BadArchive(error.strerror or str(error)) from None
        raise ResourceError(
            f"cannot unpack {archive}: {error.strerror}", "check the folder's permissions"
        ) from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BadArchive(f"damaged or cut off: {error}") from None
    # A chain of 1000 headers, an encrypted entry or unknown method of zip, invalid numbers and names.
    except (RecursionError, RuntimeError, NotImplementedError, ValueError, OverflowError) as error:
        raise BadArchive(str(error)) from None


# ---------------------------------------------------------------------- zip


def _unpack_zip(raw: IO[bytes], root: ExtractionRoot, progress: ByteProgress) -> None:
    with zipfile.ZipFile(raw) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        root.needs(total, len(entries))
        done = 0
        for entry in entries:
            _unpack_entry(archive, entry, root)
            done += entry.file_size
            progress(done, total)


def _unpack_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, root: ExtractionRoot) -> None:
    mode = entry.external_attr >> 16
    kind, parts = stat.S_IFMT(mode), parts_of(entry.filename)
    if entry.is_dir():
        root.make_folder(parts, mode or 0o755)
    elif kind == stat.S_IFLNK:
        with archive.open(entry) as source:
            root.add_link(parts, os.fsdecode(source.read(MAX_TARGET + 1)))
    elif kind in (0, stat.S_IFREG):
        with archive.open(entry) as source:
            root.write_file(parts, mode or 0o644, _zip_mtime_s(entry), entry.file_size, source)
            if source.read(1):  # this read makes zipfile verify the checksum
                raise BadArchive(f"{entry.filename!r} is longer than it says")
    else:
        raise BadArchive(f"{entry.filename!r} is a device or another special file")


def _zip_mtime_s(entry: zipfile.ZipInfo) -> float:
    try:
        return time.mktime((*entry.date_time, 0, 0, -1))
    except (ValueError, OverflowError):  # month 0 and the like: a zip without times
        return 0


# ---------------------------------------------------------------------- tar


def _unpack_tar(raw: IO[bytes], root: ExtractionRoot, progress: ByteProgress) -> None:
    total = os.fstat(raw.fileno()).st_size
    root.needs(total)  # the content is at least as large as the compressed archive
    stream = TarStream(decompressed(raw), lambda: progress(raw.tell(), total))
    with tarfile.open(fileobj=stream, mode="r:", tarinfo=TarHeader) as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            _unpack_member(archive, member, root)
            archive.members.clear()  # tarfile would keep them all: 50 MB for a large environment
    stream.finish()
    progress(total, total)


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, root: ExtractionRoot) -> None:
    parts = parts_of(member.name)
    if member.isdir():
        root.make_folder(parts, member.mode)
    elif member.issym():
        root.add_link(parts, member.linkname)
    elif member.islnk():
        root.link_file(parts, member.linkname)
    elif member.isreg():
        source = archive.extractfile(member)
        assert source is not None  # true for regular files
        root.write_file(parts, member.mode, member.mtime, member.size, source)
    else:
        raise BadArchive(f"{member.name!r} is a device or another special file")
