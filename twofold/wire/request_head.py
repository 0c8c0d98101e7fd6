"""Parsing of HTTP/1.1 request heads: bytes to a `RequestHead` or a `BadRequest`.

Pure: standard library only, no I/O, no clock.

Rules of this module:

1. Strict.  A head that two parsers could interpret differently is refused, never repaired (RFC 9112, 11.2).
   A refusal closes the connection, because the start of the next request is unknown.
2. The first invalid byte decides.  Lines are checked in the order of arrival, so the verdict does not depend
   on the segmentation: feeding a head byte by byte through `doomed` gives the same verdict as parsing it
   whole.  Relations between fields are checked only when the head is complete.
3. No regular expression has two ways to match the same bytes (neighbouring classes are disjoint), so matching
   is linear.
4. Messages never contain bytes that the client sent.

A valid head takes one pass of `_HEAD` for its syntax and one of `_FIELD` for its fields; `doomed` checks line
by line, to find the fault of an invalid head.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import NamedTuple

MAX_HEAD = 32768  # bytes, from the first byte to the final CRLF CRLF
MAX_FIELDS = 100

REASONS: dict[int, bytes] = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
STATUS_LINES: dict[int, bytes] = {  # an application may respond with a status without a standard reason
    status: b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b"Status")) for status in range(100, 600)
}

# RFC 9110, 5.6.2 (token) and 5.5 (field-value, with obs-text).
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]"
_VISIBLE = rb"[\x21-\x7e]"
_FIELDS = rb"((?:" + _TOKEN + rb"+:" + _VALUE + rb"*\r\n)*)"
_HEAD = re.compile(
    rb"(?:\r\n)?(" + _TOKEN + rb"{1,32}) (" + _VISIBLE + rb"+) HTTP/1\.([01])\r\n" + _FIELDS + rb"\r\n"
)
_FIELD = re.compile(rb"([^:]+):([^\r]*)\r\n")  # applied after _HEAD

# Patterns of a line that has arrived in part, perhaps with its final CR; the _IN patterns match the rest of a
# line whose first part is known to be valid.
_IN_VERSION = re.compile(_VISIBLE + rb"*\r?")
_IN_TARGET = re.compile(_VISIBLE + rb"*(?: " + _IN_VERSION.pattern + rb"|\r?)")
_IN_VALUE = re.compile(_VALUE + rb"*\r?")
_IN_NAME = re.compile(_TOKEN + rb"*(?::" + _IN_VALUE.pattern + rb"|\r?)")
_REQUEST_LINE_BEGUN = re.compile(
    _TOKEN + rb"{1,32}(?:\r?| (?:" + _VISIBLE + _IN_TARGET.pattern + rb"|\r?))|\r?"
)
_FIELD_BEGUN = re.compile(_TOKEN + _IN_NAME.pattern + rb"|\r?")
_FIELD_LINE = re.compile(_TOKEN + rb"+:" + _VALUE + rb"*\r")
_REQUEST_LINE = re.compile(rb"([^ ]+) ([^ ]+) ([^ ]+)\r")
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")

# RFC 3986, 3.2.2, without escapes, and without a comma, which more likely joins two Host fields.
_HOST = re.compile(rb"(?:[0-9A-Za-z\-._~!$&'()*+;=]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp]://([^/?]*)([^?]*)(\?.*)?")
_ESCAPES = re.compile(rb"(?:%[0-9A-Fa-f]{2})+")
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_NAME = re.compile(_TOKEN + rb"+")
_NAMES = re.compile(_TOKEN + rb"+(?:[ \t]*,[ \t]*" + _TOKEN + rb"+)*")
_REQUEST_ID = re.compile(rb"[0-9A-Za-z._~-]{1,64}")

_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_PERSISTENT = {b"keep-alive": True, b"Keep-Alive": True, b"close": False}  # whatever the version
_SINGLE = frozenset((b"host", b"content-length", b"transfer-encoding", b"content-type"))
_INTERPRETED = frozenset((*_SINGLE, b"connection", b"expect", b"opc-request-id"))


class BadRequest(Exception):
    """An invalid request: respond with status, code and message, then close the connection."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message


class RequestHead(NamedTuple):
    """A valid request head. A tuple, because a frozen dataclass takes 2 us to construct."""

    method: str
    target: bytes  # as received
    path: str  # percent-decoded once, without the query; "*" for OPTIONS *
    query: bytes  # as received, without the question mark
    version: tuple[int, int]  # (1, 0) or (1, 1)
    headers: tuple[tuple[bytes, bytes], ...]  # names in lower case, values without outer blanks
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expect_continue: bool  # a body follows and the client waits for 100 (Continue)
    content_type: bytes
    request_id: bytes  # the first group of opc-request-id if it consists of safe characters, else empty

    def line(self) -> bytes:
        """For the access log: method, path and version, as in "POST /predict 1.1"."""
        return b"%s %s %d.%d" % (self.method.encode(), self.target.partition(b"?")[0], *self.version)


def find_head(buffer: bytes | bytearray, start: int = 0) -> int:
    """The index after the head's CRLF CRLF, searched from `start`, or -1.

    After `n` bytes without a match, continue with `start` = max(0, n - 3).
    """
    found = buffer.find(b"\r\n\r\n", start)
    return found + 4 if found >= 0 else -1


def doomed(partial: bytes | bytearray, start: int = 0) -> BadRequest | None:
    """The refusal of a head that no further byte can make valid, or None.

    `start`: the number of bytes that an earlier call has checked, so that a head in small pieces is not
    checked repeatedly.
    """
    text = bytes(partial[:MAX_HEAD])
    first = 2 if text.startswith(b"\r\n") else 0  # RFC 9112, 2.2: one empty line is ignored
    begin = max(first, text.rfind(b"\n", 0, max(start, 0)) + 1)
    seen = text.count(b"\n", first, begin)
    *lines, rest = text[begin:].split(b"\n")
    for index, line in enumerate(lines, seen):
        if index and line == b"\r":
            return None  # the end of the head
        fault = _line_fault(index, line)
        if fault is not None:
            return fault
    index = seen + len(lines)
    if not _has_begun(index, rest, 0 if lines else start - begin):
        return _syntax_fault(index, rest)
    return _too_large() if len(partial) >= MAX_HEAD else None


def parse_head(data: bytes) -> RequestHead:
    """Parse `data`, a head including its CRLF CRLF. Raises BadRequest."""
    match = _HEAD.fullmatch(data) if len(data) <= MAX_HEAD else None
    if match is None:
        raise doomed(data) or _bad("the request head does not end with an empty line")
    verb, target, minor, block = match.groups()
    method, path, query, authority = _request_line(verb, target)  # before the fields: rule 2
    fields = _fields(block)
    found = dict(fields)
    if len(found) != len(fields):
        found = _merged(fields)
    modern = minor == b"1"
    _check_host(found.get(b"host"), authority, modern)
    content_length, chunked = _framing(found, modern)
    expects = b"expect" in found and _expects_continue(found[b"expect"])
    return RequestHead(
        method=method,
        target=target,
        path=path,
        query=query,
        version=(1, 1) if modern else (1, 0),
        headers=tuple(fields),
        content_length=content_length,
        chunked=chunked,
        keep_alive=_keep_alive(found[b"connection"], modern) if b"connection" in found else modern,
        # RFC 9110, 10.1.1: not for HTTP/1.0, and pointless where no body follows.
        expect_continue=expects and modern and (chunked or bool(content_length)),
        content_type=found.get(b"content-type", b""),
        request_id=_first_group(found[b"opc-request-id"]) if b"opc-request-id" in found else b"",
    )


# ---------------------------------------------------------------- faults of a line


def _has_begun(index: int, rest: bytes, known: int) -> bool:
    """Whether `rest`, whose first `known` bytes have been checked, may be the start of a valid line."""
    last = known - 1  # checked again, because a CR is valid only before LF
    pattern = _FIELD_BEGUN if index else _REQUEST_LINE_BEGUN
    if last < 0:
        return pattern.fullmatch(rest) is not None
    if index:
        pattern = _IN_VALUE if rest.find(b":", 0, known) >= 0 else _IN_NAME
    else:
        spaces = rest.count(b" ", 0, known)
        if spaces == 0 or rest[last] == 0x20:
            last = 0
        else:
            pattern = _IN_TARGET if spaces == 1 else _IN_VERSION
    return pattern.fullmatch(rest, last) is not None


def _line_fault(index: int, line: bytes) -> BadRequest | None:
    """The fault of a complete line with its CR, or None; line 0 is the request line."""
    if index:
        if not _FIELD_LINE.fullmatch(line):
            return _syntax_fault(index, line)
        return _too_large() if index > MAX_FIELDS else None
    parts = _REQUEST_LINE.fullmatch(line) if _has_begun(0, line, 0) else None
    if parts is None:
        return _syntax_fault(index, line)
    verb, target, version = parts.groups()
    number = _VERSION.fullmatch(version)
    if number is None:
        return _bad("the request line does not end with HTTP/1.1 or HTTP/1.0")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        return BadRequest(505, "HTTPVersionNotSupported", "only HTTP/1.1 and HTTP/1.0 are spoken here")
    try:
        _request_line(verb, target)
    except BadRequest as fault:
        return fault
    return None


def _syntax_fault(index: int, line: bytes) -> BadRequest:
    if index == 0:
        return _bad("the request line is not METHOD, one space, target, one space, HTTP/1.1, CRLF")
    if line[:1] in (b" ", b"\t"):
        return _bad("a header line starts with a blank; folded header lines are not accepted")
    name, _, _ = line.partition(b":")
    if not _NAME.fullmatch(name):
        return _bad("a header line does not start with a name and a colon, or ends without CR LF")
    return _bad("a header value holds a control character, or its line does not end with CR LF")


def _bad(message: str) -> BadRequest:
    return BadRequest(400, "CannotParseRequest", message)


def _too_large() -> BadRequest:
    message = f"the request head is larger than {MAX_HEAD} bytes or {MAX_FIELDS} fields"
    return BadRequest(431, "RequestHeaderFieldsTooLarge", message)


# ---------------------------------------------------------------- the request line


def _request_line(verb: bytes, target: bytes) -> tuple[str, str, bytes, bytes | None]:
    """Method, path, query, and the authority when the target is in absolute form."""
    method = _METHODS.get(verb)
    if method is None:  # RFC 9110, 9.1
        raise BadRequest(501, "MethodNotImplemented", "the request method is not implemented")
    if b"#" in target:
        raise _bad("the request target has a fragment; fragments stay with the client")
    if target[:1] == b"/":
        raw, _, query = target.partition(b"?")
        return method, _decoded(raw), query, None
    if target == b"*":
        if method != "OPTIONS":
            raise _bad("the request target * belongs to OPTIONS only")
        return method, "*", b"", None
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise _bad("the request target is neither a path nor an http:// URL")
    authority, raw, query = absolute.groups(b"")
    if not _is_host(authority):  # user information has an @, which no host has
        raise _bad("the URL in the request line needs a host, a port at most, and no user name")
    return method, _decoded(raw or b"/"), query[1:], authority


def _decoded(raw: bytes) -> str:
    """Percent-decoded once (RFC 3986, 2.4); a path never holds control characters."""
    if b"%" not in raw:
        return raw.decode("ascii")
    if _BROKEN_ESCAPE.search(raw):
        raise _bad("a percent sign in the path is not followed by two hexadecimal digits")
    try:
        path = _ESCAPES.sub(_octets, raw).decode("utf-8")
    except UnicodeDecodeError:
        raise _bad("the path does not decode to UTF-8") from None
    if _CONTROL.search(path):
        raise _bad("the path holds an encoded control character")
    return path


def _octets(escapes: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escapes[0].replace(b"%", b"").decode("ascii"))


# ---------------------------------------------------------------- the fields


def _fields(block: bytes) -> list[tuple[bytes, bytes]]:
    fields = [(name.lower(), value.strip()) for name, value in _FIELD.findall(block)]
    if len(fields) > MAX_FIELDS:
        raise _too_large()
    return _without_twins(fields) if b"_" in block else fields


def _without_twins(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Remove X_Y where X-Y exists or is interpreted: CGI and WSGI map both to one variable."""
    taken = _INTERPRETED.union(name for name, _ in fields)
    return [field for field in fields if b"_" not in field[0] or field[0].replace(b"_", b"-") not in taken]


def _merged(fields: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Fields by name where a name occurs twice; lists are joined (RFC 9110, 5.3)."""
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        if name not in found:
            found[name] = value
        elif name in _SINGLE:
            raise _bad(f"the header {name.decode()} is given twice")
        else:
            found[name] += b"," + value
    return found


def _check_host(host: bytes | None, authority: bytes | None, modern: bool) -> None:
    """RFC 9112, 3.2: exactly one valid Host in HTTP/1.1; it must agree with an absolute target."""
    if host is None:
        if modern:
            raise _bad("the header host is missing")
    elif not _is_host(host):
        raise _bad("the header host is not a host name or address with at most a port")
    elif authority is not None and _plain(host) != _plain(authority):
        raise _bad("the header host and the URL in the request line disagree")


def _is_host(text: bytes) -> bool:
    match = _HOST.fullmatch(text)
    return match is not None and (not match[1] or int(match[1]) <= 65535)


def _plain(host: bytes) -> bytes:
    return host.lower().removesuffix(b":80").removesuffix(b":")


def _framing(found: dict[bytes, bytes], modern: bool) -> tuple[int | None, bool]:
    """Content length and whether the body is chunked (RFC 9112, 6.3, without its leniencies)."""
    length = found.get(b"content-length")
    coding = found.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise _bad("content-length and transfer-encoding exclude each other")
        if not modern:
            raise _bad("HTTP/1.0 has no transfer-encoding")
        _check_coding(coding.lower())
        return None, True
    if length is None:
        return None, False
    # bytes.isdigit() knows ASCII digits only: no sign, blank, underscore or list gets through.
    if not length.isdigit() or len(length) > 18:
        raise _bad("content-length is not a number of 1 to 18 digits")
    return int(length), False


def _check_coding(coding: bytes) -> None:
    if coding == b"chunked":
        return
    if not _NAMES.fullmatch(coding):
        raise _bad("transfer-encoding is not a list of coding names")
    *first, _ = (name.strip(b" \t") for name in coding.split(b","))
    if b"chunked" in first:
        raise _bad("transfer-encoding may name chunked once, and last")
    raise BadRequest(501, "NotImplemented", "no transfer-encoding other than chunked is implemented")


def _expects_continue(value: bytes) -> bool:
    if any(part.strip(b" \t").lower() != b"100-continue" for part in value.split(b",")):
        raise BadRequest(417, "ExpectationFailed", "the only expectation met here is 100-continue")
    return True


def _keep_alive(value: bytes, modern: bool) -> bool:
    if value in _PERSISTENT:
        return _PERSISTENT[value]
    options = [option.strip(b" \t") for option in value.lower().split(b",")]
    return b"close" not in options and (modern or b"keep-alive" in options)


def _first_group(value: bytes) -> bytes:
    group = value.partition(b"/")[0]
    return group if _REQUEST_ID.fullmatch(group) else b""
