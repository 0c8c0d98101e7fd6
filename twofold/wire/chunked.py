"""The chunked transfer coding of a response (RFC 9112, 7.1).

Pure.  Strict: sizes are plain hexadecimal, lines end with CR LF, extensions are ignored up to a limit, and
trailer fields are not merged with header fields.
"""

from __future__ import annotations

import re

MAX_SIZE_LINE = 256  # bytes of a chunk's size and its extensions
MAX_TRAILERS = 8192  # bytes
FORBIDDEN = frozenset(
    (b"content-length", b"transfer-encoding", b"host", b"connection", b"trailer", b"authorization")
    + (b"set-cookie", b"content-type", b"content-encoding", b"te", b"upgrade", b"keep-alive")
)

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")

_IN_SIZE, _IN_DATA, _BEHIND_DATA, _IN_TRAILERS, _END = range(5)


class BadChunk(Exception):
    """The body violates the chunked coding; the text is the reason."""


class ChunkReader:
    """Decodes a chunked body. After `done`, `rest` holds the bytes that follow it."""

    __slots__ = ("_buffer", "_left", "_state", "rest", "trailers")

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0
        self._state = _IN_SIZE
        self.trailers: list[tuple[bytes, bytes]] = []
        self.rest = b""

    @property
    def done(self) -> bool:
        return self._state == _END

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces of the body in `data`. Raises BadChunk."""
        self._buffer, buffer = b"", self._buffer + data
        pieces: list[bytes] = []
        position = 0
        while position < len(buffer) or self._state == _END:
            if self._state == _END:
                self.rest = buffer[position:]
                return pieces
            if self._state == _IN_DATA:
                piece = buffer[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _BEHIND_DATA
                continue
            end = buffer.find(b"\n", position)
            limit = MAX_TRAILERS if self._state == _IN_TRAILERS else MAX_SIZE_LINE
            if (end if end >= 0 else len(buffer)) - position > limit:
                raise BadChunk("a chunk's size line or a trailer is too long")
            if end < 0:
                self._buffer = buffer[position:]
                break
            if buffer[end - 1 : end] != b"\r" or end == position:
                raise BadChunk("a line of the chunked coding does not end with CR LF")
            self._line(buffer[position : end - 1])
            position = end + 1
        return pieces

    def _line(self, line: bytes) -> None:
        if self._state == _BEHIND_DATA:
            if line:
                raise BadChunk("a chunk is longer than its size")
            self._state = _IN_SIZE
        elif self._state == _IN_SIZE:
            match = _SIZE.fullmatch(line)
            if match is None:
                raise BadChunk("a chunk's size is not hexadecimal")
            self._left = int(match[1], 16)
            self._state = _IN_DATA if self._left else _IN_TRAILERS
        elif not line:
            self._state = _END
        else:
            self._trailer(line)

    def _trailer(self, line: bytes) -> None:
        match = _TRAILER.fullmatch(line)
        if match is None or len(self.trailers) >= 32:
            raise BadChunk("a trailer is not a field, or there are too many")
        name, value = match.groups()
        if name.lower() not in FORBIDDEN:  # RFC 9110, 6.5.1
            self.trailers.append((name, value.strip(b" \t")))


def chunk(piece: bytes) -> bytes:
    """`piece` as one chunk. It must not be empty, because an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def last_chunk(trailers: list[tuple[bytes, bytes]]) -> bytes:
    """The end of a body, with its trailer fields."""
    return b"0\r\n" + b"".join(b"%b: %b\r\n" % field for field in trailers) + b"\r\n"
