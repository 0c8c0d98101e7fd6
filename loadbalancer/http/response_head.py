"""Response heads from instances: parsing, framing of the body, and templates of repeated heads.

Pure: no I/O, no clock.  Strict: a response that two parsers could interpret differently is refused, and its
connection is not reused (RFC 9112, 6.3 and 11.2).

Parsing costs 6 us, and successive heads of an instance differ in few values.  So a `HeadTemplate` is made of
each kind of head: a regular expression with constant bytes as literals and a *hole* for each value that was
seen to change.  A match validates every byte of a head, and its groups are the pieces to send to the client.
Fields that determine the framing are never holes, except the number in Content-Length.

Most of a head, including Date, is constant for a second.  That part is compared as one string, and only the
rest is matched by an expression, which takes half the time.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from twofold.loadbalancer.http.forwarding import HOP_BY_HOP, answer_fields
from twofold.wire.request_head import MAX_FIELDS, MAX_HEAD

LENGTH, CHUNKED, TO_THE_END, NOTHING = range(4)  # how the body ends

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*"
_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: (" + _VALUE + rb"))?\r\n"
    rb"((?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*)\r\n"
)
_ID = rb"[!#-\[\]-~]+"  # needs no escape in the access log's JSON; another id is replaced by a new one
_IS_ID = re.compile(_ID)
_ID_LABEL: Final = b"\r\nopc-request-id: "
# Tables for bytes.translate(), which is faster than a pattern: bytes outside the class are changed.
_OF_VALUE, _OF_ID = (
    bytes(byte if re.fullmatch(kind, bytes([byte])) else byte ^ 1 for byte in range(256))
    for kind in (_VALUE, _ID)
)
_FIELD = re.compile(rb"([^:]+):([^\r]*)\r\n")
_BEGINNING = b"HTTP/1."
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
# Never a hole: another value would mean another kind of response.
_DECISIVE = HOP_BY_HOP | {b"content-length", b"trailer", b"opc-request-id"}
_NO_BODY = (204, 304)
MAX_TEMPLATES = 64


class BadResponse(Exception):
    """The instance's response is invalid and cannot be relayed."""


class ResponseHead(NamedTuple):
    status: int
    reason: bytes
    version: int  # the minor version of HTTP/1
    fields: tuple[tuple[bytes, bytes], ...]  # names in lower case
    framing: int
    length: int  # of the body, where `framing` is LENGTH
    keep_alive: bool  # the instance keeps the connection open
    request_id: bytes

    @property
    def interim(self) -> bool:
        return self.status < 200


def doomed(partial: bytes) -> bool:
    """Whether `partial` cannot become a valid head, whatever bytes follow."""
    return not partial.startswith(_BEGINNING[: len(partial)]) or _BARE_LINE_FEED.search(partial) is not None


def parse(raw: bytes, to_head: bool = False) -> ResponseHead:
    """Parse a head, including its empty line. `to_head`: it responds to HEAD. Raises BadResponse."""
    if len(raw) > MAX_HEAD:
        raise BadResponse("the head is too large")
    match = _HEAD.fullmatch(raw)
    if match is None:
        raise BadResponse("the head is not HTTP/1.1")
    minor, code, reason, block = match.groups(b"")
    fields = tuple((name.lower(), value.strip(b" \t")) for name, value in _FIELD.findall(block))
    if len(fields) > MAX_FIELDS:
        raise BadResponse("the head has too many fields")
    status, modern = int(code), minor == b"1"
    named = _single(fields)
    framing, length = _framing(named, status, modern)
    # A body that is announced where none is allowed may be sent, and would be parsed as the next response.
    sound = status not in _NO_BODY or (framing != CHUNKED and not length)
    if to_head or status < 200 or status in _NO_BODY:
        framing, length = NOTHING, 0
    keep = _keep_alive(named.get(b"connection", b""), modern) and framing != TO_THE_END and sound
    request_id = named.get(b"opc-request-id", b"")
    if not _IS_ID.fullmatch(request_id):
        request_id = b""
    return ResponseHead(status, reason, int(minor), fields, framing, length, keep, request_id)


def _single(fields: tuple[tuple[bytes, bytes], ...]) -> dict[bytes, bytes]:
    named: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in named and name in (b"content-length", b"transfer-encoding"):
            raise BadResponse(f"the field {name.decode()} is given twice")
        named[name] = named[name] + b"," + value if name in named and name == b"connection" else value
    return named


def _framing(named: dict[bytes, bytes], status: int, modern: bool) -> tuple[int, int]:
    coding, length = named.get(b"transfer-encoding"), named.get(b"content-length")
    if coding is not None:
        if length is not None or not modern or coding.lower() != b"chunked":
            raise BadResponse("its transfer-encoding is not plainly chunked")
        if status < 200 or status == 204:  # RFC 9112, 6.1
            raise BadResponse("a transfer-encoding where no body can be")
        return CHUNKED, 0
    if length is None:
        return TO_THE_END, 0
    if not length.isdigit() or len(length) > 18:
        raise BadResponse("its content-length is not a number")
    return LENGTH, int(length)


def _keep_alive(value: bytes, modern: bool) -> bool:
    options = [option.strip(b" \t") for option in value.lower().split(b",")]
    return b"close" not in options and (modern or b"keep-alive" in options)


class HeadTemplate:
    """One kind of head, matched against the following ones.

    If a response begins with `start`, of `size` bytes, `rest(response, size)` matches the rest of the head;
    otherwise match() matches the whole head and sets a new `start`.  Group `length`: the number in
    Content-Length; group `request_id`: the id.  `kept`: the numbers of the groups to join for the client,
    empty if the whole head is sent on.  `has_id`: the head contains an id.

    Without an id, an instance often repeats a head exactly.  A response of `total` bytes that begins with the
    head `same` needs no match: the client gets `opening`, a new id, and the bytes from `cut`.  With an id, an
    instance often repeats all but the id, of `id_size` bytes, and the field before it, such as Server-Timing;
    see twin().
    """

    __slots__ = (
        "_before", "_behind", "_front", "_front_size", "_tail", "_tail_size", "_whole", "cut", "has_id",
        "holes", "id_size", "kept", "lines", "opening", "rest", "same", "size", "start", "status", "total",
    )  # fmt: skip

    def __init__(self, raw: bytes, head: ResponseHead, holes: frozenset[bytes]) -> None:
        self.status = head.status
        self.holes = holes
        self.has_id = bool(head.request_id)
        self.lines = raw.split(b"\r\n")[:-2]
        self.start, self.size = b"", 0
        self.same = self.opening = b""
        self.total = self.cut = self._before = 0
        self._front = self._tail = b""
        self._front_size = self._tail_size = self._behind = self.id_size = 0
        dropped = {name for name, _ in head.fields} - {name for name, _ in answer_fields(head.fields)}
        if dropped:
            pattern, self.kept = _pattern_of_pieces(self.lines, dropped, holes)
            self.rest = self._whole = re.compile(pattern).match
        else:
            lines = [_line(line, _name(line), holes)[0] for line in self.lines]
            volatile = holes - {b"date"} | {b"content-length", b"opc-request-id"}
            steady = next(at for at, line in enumerate(self.lines) if _name(line) in volatile)
            rest = b"".join(lines[steady:]) + rb"\r\n"
            self.kept = ()
            self.rest = re.compile(rest).match
            self._whole = re.compile(b"(?P<start>" + b"".join(lines[:steady]) + b")" + rest).match
            self.match(raw)

    def match(self, data: bytes) -> re.Match[bytes] | None:
        """Match a whole head, and expect the following ones to have the same `start`."""
        found = self._whole(data)
        if found is not None and not self.kept:
            self.start = found["start"]
            self.size = len(self.start)
        return found

    def twin(self, data: bytes) -> bytes:
        """The id of a response whose head equals the last one except for the id and one field; else b"".

            front | value (variable length) | label | id (id_size) | tail | body (same length as before)

        `front`, `label` and `tail` must be equal bytes; value and id must consist of valid characters. All
        positions but the end of the value are counted from the end. Invariant: every accepted response
        matches the pattern, too; the cost is a third.
        """
        end = len(data) - self._behind
        begin = end - self.id_size
        label = begin - len(_ID_LABEL)
        if (
            label >= self._front_size
            and data.startswith(self._front)
            and data[label:begin] == _ID_LABEL
            and data[end : end + self._tail_size] == self._tail
        ):
            request_id, value = data[begin:end], data[self._front_size : label]
            if request_id.translate(_OF_ID) == request_id and value.translate(_OF_VALUE) == value:
                return request_id
        return b""

    def _remember(self, data: bytes, match: re.Match[bytes]) -> None:
        """Prepare twin() from a matched response, if the bytes after its id equal those of the last one."""
        begin, end = match.span("request_id")
        tail = data[end : match.end()]
        label = data.rfind(_ID_LABEL, 0, begin)
        if tail != self._tail or label + len(_ID_LABEL) != begin:
            self._tail, self.id_size = tail, 0
            return
        line = data.rfind(b"\r\n", 0, label) + 2
        name = _name(data[line:label])
        if name in self.holes:
            self._front_size = line + len(name) + 1
            self._front = data[: self._front_size]
        else:  # all bytes up to the id must be equal: another field before it, a length say, may have changed
            self._front_size, self._front = label, data[:begin]
        self._tail_size, self._behind, self.id_size = len(tail), len(data) - end, end - begin

    def edit(self, data: bytes, match: re.Match[bytes], request_id: bytes) -> bytes:
        """The complete response for the client, of a response that has matched."""
        if self.has_id and not self.kept:
            self._remember(data, match)
            return data
        end = match.end()
        kept = b"".join([match[number] for number in self.kept]) or data[: end - 2]
        if self.has_id:
            return kept + data[end - 2 :]
        opening, cut = kept + b"opc-request-id: ", end - 4
        if len(data) == self._before:  # only responses of constant length are worth remembering
            self.same, self.total, self.opening, self.cut = data[:end], len(data), opening, cut
        self._before = len(data)
        return opening + request_id + data[cut:]


def _name(line: bytes) -> bytes:
    """The name of a field line, in lower case. For a status line, no valid field name."""
    return line.partition(b":")[0].lower()


def _pattern_of_pieces(
    lines: list[bytes], dropped: set[bytes], holes: frozenset[bytes]
) -> tuple[bytes, tuple[int, ...]]:
    """(pattern of a whole head, numbers of the groups that are sent on)."""
    pattern, group, kept, inside = b"", 0, [], False
    for line in lines:
        name = _name(line)
        if name in dropped:
            pattern += (b")" if inside else b"") + re.escape(line) + rb"\r\n"
            inside = False
            continue
        if not inside:
            group += 1
            kept.append(group)
            pattern, inside = pattern + b"(", True
        piece, groups = _line(line, name, holes)
        pattern, group = pattern + piece, group + groups
    return pattern + (b")" if inside else b"") + rb"\r\n", tuple(kept)


def _line(line: bytes, name: bytes, holes: frozenset[bytes]) -> tuple[bytes, int]:
    """(pattern of one line that is sent on, groups in it)."""
    value = line[len(name) + 1 :]
    start = len(line) - len(value.lstrip(b" \t"))
    label, end = re.escape(line[:start]), re.escape(line[len(line.rstrip(b" \t")) :]) + rb"\r\n"
    if name == b"content-length":
        return label + rb"(?P<length>[0-9]{1,18}+)" + end, 1
    if name == b"opc-request-id":
        return label + rb"(?P<request_id>" + _ID + b"+)" + end, 1
    if name in holes:
        return re.escape(line[: len(name) + 1]) + _VALUE + rb"+\r\n", 0
    return re.escape(line) + rb"\r\n", 0


class HeadTemplates:
    """The templates of the heads that instances send: at most MAX_TEMPLATES."""

    def __init__(self) -> None:
        self._by_shape: dict[tuple[bytes, ...], HeadTemplate] = {}
        self._learnt = 0

    def learn(self, raw: bytes, head: ResponseHead) -> HeadTemplate | None:
        """A template for `raw` and similar heads; None if such heads must be parsed each time.

        A template requires HTTP/1.1, a known length, keep-alive, and unique field names.
        """
        if head.framing != LENGTH or not head.keep_alive or not head.version:
            return None
        if self._learnt >= 4 * MAX_TEMPLATES:
            return None
        lines = raw.split(b"\r\n")[:-2]
        names = [line.partition(b":")[0].lower() for line in lines[1:]]
        if len(set(names)) != len(names) or (b"opc-request-id" in names and not head.request_id):
            return None
        shape = (lines[0], *names)
        known = self._by_shape.get(shape)
        if known is None and len(self._by_shape) >= MAX_TEMPLATES:
            return None
        holes = frozenset((b"date", b"server-timing"))
        if known is not None:
            changed = {name for name, a, b in zip(names, known.lines[1:], lines[1:], strict=True) if a != b}
            if changed & (_DECISIVE - {b"content-length", b"opc-request-id"}):
                return None
            holes = known.holes | (changed - _DECISIVE)
            if holes == known.holes and known.match(raw):
                return known
        self._learnt += 1
        self._by_shape[shape] = made = HeadTemplate(raw, head, holes)
        return made
