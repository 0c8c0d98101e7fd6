"""A tar stream, compressed or not, read strictly forward and with limits.

tarfile knows the dialects of tar, but trusts the file: it reads headers of any size into memory, and takes a
damaged header for the end.  The classes here check the bytes before tarfile reads them.  Touches the given
file only.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from typing import IO

from twofold.server.archive.extraction_root import CHUNK, BadArchive, ByteSource

BLOCK = 512
MAX_HEADER = 1 << 20
HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def decompressed(raw: IO[bytes]) -> ByteSource:
    """The decompressed content of a tar file. Raises BadArchive if its kind is unknown."""
    start = raw.read(BLOCK)
    raw.seek(0)
    if start.startswith(b"\x1f\x8b"):
        import gzip

        return gzip.GzipFile(fileobj=raw)
    if start.startswith(b"BZh"):
        import bz2

        return bz2.BZ2File(raw)
    if start.startswith(b"\xfd7zXZ\0"):
        import lzma

        return _Lzma(lzma.LZMAFile(raw))
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        raise BadArchive("zstd is not supported, but tar (plain, gz, bz2, xz) and zip are")
    if start[257:262] != b"ustar":
        raise BadArchive("neither a tar (plain, gz, bz2, xz) nor a zip archive")
    return raw


class _Lzma:
    """An lzma source whose LZMAError becomes an EOFError, which unpack() handles."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source

    def read(self, size: int, /) -> bytes:
        import lzma

        try:
            return self._source.read(size)
        except lzma.LZMAError as error:
            raise EOFError(str(error)) from None


class TarHeader(tarfile.TarInfo):
    """A tar header of limited size: tarfile reads a header into memory, and a negative size steps backwards.

    The size is checked when it is read.  tarfile constructs headers differently in each of its security
    releases, so a check on construction would not be reliable.
    """

    _size = 0

    @property
    def size(self) -> int:
        """Size of the data, in bytes. Raises BadArchive."""
        if self._size < 0 or (self._size > MAX_HEADER and self.type in HEADERS):
            raise BadArchive(f"a header of {self._size} bytes")
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size


class TarStream:
    """The decompressed bytes as a file for tarfile, which reads forward, but seeks back by one byte.

    A decompressor would seek back by starting again, so this class keeps the last block.
    """

    def __init__(self, source: ByteSource, tick: Callable[[], None]) -> None:
        self._source = source
        self._tick = tick
        self._ticked = 0
        self._end = 0  # bytes read from the source
        self._back = 0  # bytes between the current position and `_end`
        self._last = b""
        self._result = b""

    def tell(self) -> int:
        """The current position, in bytes."""
        return self._end - self._back

    def seek(self, offset: int) -> int:
        """Go to `offset`. Raises BadArchive if it is further back than one block."""
        back = self._end - offset
        if back > len(self._last):
            raise BadArchive("its headers lead backwards")
        self._back = max(back, 0)
        while self._end < offset and self._pull(min(offset - self._end, CHUNK)):
            pass  # at the end of the source the next read() is short, and tarfile raises
        return self.tell()

    def read(self, size: int) -> bytes:
        """Read `size` bytes, fewer at the end of the source."""
        result = b""
        if self._back:
            start = len(self._last) - self._back
            result = self._last[start : start + size]
            self._back -= len(result)
        while len(result) < size:
            chunk = self._pull(min(size - len(result), CHUNK))
            if not chunk:
                break
            result += chunk
        self._result = result
        return result

    def finish(self) -> None:
        """Raises BadArchive unless tarfile stopped at the end mark and only zeros follow.

        tarfile also stops, without an error, at an unknown header.  Reading to the end makes the
        decompressor verify its checksum.
        """
        if self._result != bytes(BLOCK):
            raise BadArchive("damaged or cut off: it has no end mark")
        while chunk := self._pull(CHUNK):
            if chunk.strip(b"\0"):
                raise BadArchive("damaged: something follows its end mark")

    def _pull(self, size: int) -> bytes:
        chunk = self._source.read(size)
        self._end += len(chunk)
        self._last = chunk[-BLOCK:] if len(chunk) >= BLOCK else (self._last + chunk)[-BLOCK:]
        if self._end - self._ticked >= CHUNK:
            self._ticked = self._end
            self._tick()
        return chunk
