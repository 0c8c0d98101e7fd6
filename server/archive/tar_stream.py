"""A tar file, compressed or not, read strictly forward and suspiciously.

tarfile knows the many dialects of tar, but trusts them: it reads headers of any size into memory, and
takes a damaged header for the end.  What lies between it and the bytes is here.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from typing import IO

from twofold.server.archive.extraction import CHUNK, BadArchive, ByteSource

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
    """The content of a tar file. BadArchive if it is of no known kind."""
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
    """lzma with its own error turned into one that unpack() knows."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source

    def read(self, size: int, /) -> bytes:
        import lzma

        try:
            return self._source.read(size)
        except lzma.LZMAError as error:
            raise EOFError(str(error)) from None


class TarHeader(tarfile.TarInfo):
    """A tar header that may not make tarfile read any amount into memory, nor step backwards.

    Its size is looked at where it is asked for: each of tarfile's security fixes makes headers another
    way, and reads what belongs to them another way.
    """

    _size = 0

    @property
    def size(self) -> int:
        if self._size < 0 or (self._size > MAX_HEADER and self.type in HEADERS):
            raise BadArchive(f"a header of {self._size} bytes")
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size


class TarStream:
    """The decompressed bytes as a file for tarfile, which reads forward, but looks back at one byte.

    To step back, a decompressor would start again at the beginning; here the last block is kept.
    """

    def __init__(self, source: ByteSource, tick: Callable[[], None]) -> None:
        self._source = source
        self._tick = tick
        self._ticked = 0
        self._end = 0  # how much has been read of the source
        self._back = 0  # how far behind that we are
        self._last = b""
        self._result = b""

    def tell(self) -> int:
        return self._end - self._back

    def seek(self, offset: int) -> int:
        back = self._end - offset
        if back > len(self._last):
            raise BadArchive("its headers lead backwards")
        self._back = max(back, 0)
        while self._end < offset and self._pull(min(offset - self._end, CHUNK)):
            pass  # at the end, the next read() finds nothing, and tarfile says so
        return self.tell()

    def read(self, size: int) -> bytes:
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
        """BadArchive unless tarfile stopped at the end mark and only zeros follow.

        tarfile also stops, and says nothing, at a header that it does not understand.  To read on to
        the end makes the decompressor compare its checksum.
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
