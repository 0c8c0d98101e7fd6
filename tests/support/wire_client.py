"""A strict HTTP/1.1 client on a bare socket, for tests: it sends what it is told and forgives nothing.

Loopback only. Every wait ends at a deadline on the monotonic clock.
"""

from __future__ import annotations

import re
import select
import socket
import time
from dataclasses import dataclass
from types import TracebackType

STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2}) ([\x20-\x7e]*)")
FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x20-\x7e\t\x80-\xff]*?)[ \t]*")
BODILESS = (204, 304)
CHUNK = 65536  # bytes asked of the socket at a time


class WireError(AssertionError):
    """The server sent something that is not HTTP/1.1, or a message in the wrong place."""


class Closed(WireError):
    """The server closed the connection before a whole response had come."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"closed after {received[:200]!r}")
        self.received = received


class Silence(WireError):
    """Nothing came before the deadline."""


@dataclass(frozen=True)
class Response:
    status: int
    reason: str
    version: str  # "1.0" or "1.1"
    fields: tuple[tuple[str, str], ...]  # names in lower case
    body: bytes
    interim: tuple[int, ...]  # statuses of the 1xx responses in front of it

    def field(self, name: str) -> str | None:
        """The value of a field that may occur once."""
        values = [value for key, value in self.fields if key == name]
        if len(values) > 1:
            raise WireError(f"{name} is given {len(values)} times")
        return values[0] if values else None

    @property
    def keeps_alive(self) -> bool:
        options = [option.strip() for option in (self.field("connection") or "").lower().split(",")]
        return "close" not in options and (self.version == "1.1" or "keep-alive" in options)


class WireClient:
    """One connection. `timeout` (seconds) bounds each reading call and each blocked send."""

    def __init__(self, host: str, port: int, timeout: float = 2.0) -> None:
        self.timeout = timeout
        self.received = bytearray()  # what came and belongs to no response yet
        self.eof = False
        self._socket = socket.create_connection((host, port), timeout=timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> WireClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """All of it at once."""
        self._socket.sendall(data)

    def send_slowly(self, data: bytes, size: int = 1, until_answered: bool = True) -> int:
        """In segments of `size` bytes until the server says something; returns the bytes sent.

        A server that has refused a request reads no further: to go on would provoke a reset. Where
        good requests come before, their answers are no reason to stop: `until_answered=False`.
        """
        for begin in range(0, len(data), size):
            if until_answered and select.select([self._socket], [], [], 0)[0]:
                return begin
            try:
                self._socket.sendall(data[begin : begin + size])
            except (BrokenPipeError, ConnectionResetError):
                return begin
        return len(data)

    def half_close(self) -> None:
        """No more will be sent; reading goes on."""
        self._socket.shutdown(socket.SHUT_WR)

    def request(self, data: bytes, method: str = "GET") -> Response:
        self.send(data)
        return self.read_response(method)

    def read_response(self, method: str = "GET") -> Response:
        """Exactly one final response to a request of `method`; what follows it stays unread."""
        deadline = time.monotonic() + self.timeout
        interim: list[int] = []
        while True:
            version, status, reason, fields = _parse_head(self._until(b"\r\n\r\n", deadline))
            if status == 101 or status >= 200:
                break
            interim.append(status)
        response = Response(status, reason, version, fields, b"", tuple(interim))
        body = self._body(response, method, deadline)
        return Response(status, reason, version, fields, body, tuple(interim))

    def closes(self, within: float = 2.0) -> bool:
        """Whether the server closes in that many seconds without sending another byte."""
        try:
            while not self.eof and not self.received:
                self._receive(time.monotonic() + within)
        except Silence:
            return False
        return not self.received

    def _body(self, response: Response, method: str, deadline: float) -> bytes:
        """RFC 9112, 6.3; a length beside a coding, or one that is not a number, is an error."""
        length, coding = response.field("content-length"), response.field("transfer-encoding")
        if length is not None and (coding is not None or not re.fullmatch("[0-9]+", length)):
            raise WireError(f"content-length {length!r}, transfer-encoding {coding!r}")
        if method == "HEAD" or response.status in BODILESS:
            return b""
        if coding is not None:
            if coding.lower() != "chunked" or response.version == "1.0":
                raise WireError(f"transfer-encoding {coding!r} in HTTP/{response.version}")
            return self._chunks(deadline)
        if length is not None:
            return self._exactly(int(length), deadline)
        if response.keeps_alive:
            raise WireError("a body without an end on a connection that stays open")
        while not self.eof:
            self._receive(deadline)
        return self._exactly(len(self.received), deadline)

    def _chunks(self, deadline: float) -> bytes:
        body = bytearray()
        while True:
            line = self._until(b"\r\n", deadline)
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}\r\n", line):
                raise WireError(f"chunk size {line!r}")
            size = int(line, 16)
            if size == 0:
                while self._until(b"\r\n", deadline) != b"\r\n":
                    pass  # a trailer field
                return bytes(body)
            body += self._exactly(size, deadline)
            if self._exactly(2, deadline) != b"\r\n":
                raise WireError("a chunk does not end with CR LF")

    def _until(self, end: bytes, deadline: float) -> bytes:
        while (found := self.received.find(end)) < 0:
            self._need(deadline)
        return self._exactly(found + len(end), deadline)

    def _exactly(self, count: int, deadline: float) -> bytes:
        while len(self.received) < count:
            self._need(deadline)
        data = bytes(self.received[:count])
        del self.received[:count]
        return data

    def _need(self, deadline: float) -> None:
        if self.eof:
            raise Closed(bytes(self.received))
        self._receive(deadline)

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Silence(f"nothing more in time after {bytes(self.received[:200])!r}")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(CHUNK)
        except TimeoutError:
            raise Silence(f"nothing more in time after {bytes(self.received[:200])!r}") from None
        except ConnectionResetError:
            data = b""
        finally:
            self._socket.settimeout(self.timeout)
        self.eof = not data
        self.received += data


def _parse_head(data: bytes) -> tuple[str, int, str, tuple[tuple[str, str], ...]]:
    first, *lines = data[:-4].split(b"\r\n")
    match = STATUS_LINE.fullmatch(first)
    if match is None:
        raise WireError(f"status line {first!r}")
    fields = []
    for line in lines:
        pair = FIELD.fullmatch(line)
        if pair is None:
            raise WireError(f"field {line!r}")
        fields.append((pair[1].decode("ascii").lower(), pair[2].decode("latin-1")))
    return f"1.{match[1].decode()}", int(match[2]), match[3].decode("ascii"), tuple(fields)
