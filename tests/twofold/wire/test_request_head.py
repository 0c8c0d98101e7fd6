"""server.http1: the corpus whole and byte by byte, properties under random bytes, the head cache."""

from __future__ import annotations

import json
import os
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.http1_corpus import Case, cases
from twofold.wire import request_head
from twofold.wire.refusal import Refusal
from twofold.wire.request_head import BadRequest, RequestHead, doomed, find_head, parse_head

PLAIN = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nContent-Type: a/json\r\n\r\n"


@dataclass(frozen=True)
class Verdict:
    heads: tuple[RequestHead, ...]
    fault: tuple[int, str] | None  # status and code of the refusal behind the heads


def read(data: bytes, step: int) -> Verdict:
    """What a server concludes from `data` when it arrives in pieces of `step` bytes."""
    heads: list[RequestHead] = []
    buffer = bytearray()
    searched = body = 0
    for begin in range(0, len(data), step):
        buffer += data[begin : begin + step]
        while buffer:
            if body:
                body -= (count := min(body, len(buffer)))
                del buffer[:count]
                continue
            end = find_head(buffer, max(0, searched - 3))
            try:
                if end < 0:
                    fault = doomed(buffer, searched)
                    if fault is not None:
                        raise fault
                    searched = len(buffer)
                    break
                head = parse_head(bytes(buffer[:end]))
            except BadRequest as fault:
                return Verdict(tuple(heads), (fault.status, fault.code))
            heads.append(head)
            del buffer[:end]
            searched, body = 0, head.content_length or 0
            if head.chunked or not head.keep_alive:
                return Verdict(tuple(heads), None)
    return Verdict(tuple(heads), None)


def parsed(head: RequestHead, key: str) -> object:
    """A field of a head in the words of the corpus."""
    value = getattr(head, key)
    if key == "version":
        return "{}.{}".format(*value)
    return value.decode("latin-1") if isinstance(value, bytes) else value


# ---------------------------------------------------------------- corpus


@pytest.mark.parametrize("case", cases("invalid"), ids=str)
def test_invalid_case(case: Case) -> None:
    verdict = read(case.data, len(case.data) or 1)
    assert read(case.data, 1) == verdict
    assert read(case.data, 7) == verdict
    if case.truncated:
        assert verdict.fault is None
    else:
        assert verdict.fault is not None, case.why
        assert verdict.fault[0] == case.answers[-1], case.why
        assert len(verdict.heads) == len(case.answers) - 1


@pytest.mark.parametrize("case", cases("valid"), ids=str)
def test_valid_case(case: Case) -> None:
    verdict = read(case.data, len(case.data))
    assert read(case.data, 1) == verdict
    assert read(case.data, 7) == verdict
    assert verdict.fault is None, case.why
    first = verdict.heads[0]
    assert {key: parsed(first, key) for key in case.head} == case.head
    assert len(verdict.heads) == len(case.answers)


def test_corpus_is_as_large_as_promised() -> None:
    assert len(cases("invalid")) >= 60
    assert len(cases("valid")) >= 30


def test_every_refusal_is_explained_without_repeating_the_request() -> None:
    for case in cases("invalid"):
        if case.truncated or len(case.answers) > 1:
            continue
        end = find_head(case.data)
        fault = doomed(case.data) if end < 0 else None
        if fault is None:
            with pytest.raises(BadRequest) as caught:
                parse_head(case.data[:end])
            fault = caught.value
        assert fault.code.isalnum()
        assert fault.message.isprintable()
        for word in (b"secret", b"xchunked", b"BREW", b"-0", b"example"):
            assert word not in case.data or word.decode() not in fault.message


# ---------------------------------------------------------------- the head


def test_head_of_a_usual_request() -> None:
    head = parse_head(
        b"POST /a%20b?c=d HTTP/1.1\r\nHOST: x\r\nA-b:  1, 2\t\r\n"
        b"expect: 100-continue\r\ncontent-length: 3\r\n\r\n"
    )
    assert head == RequestHead(
        method="POST",
        target=b"/a%20b?c=d",
        path="/a b",
        query=b"c=d",
        version=(1, 1),
        headers=((b"host", b"x"), (b"a-b", b"1, 2"), (b"expect", b"100-continue"), (b"content-length", b"3")),
        content_length=3,
        chunked=False,
        keep_alive=True,
        expect_continue=True,
        content_type=b"",
        request_id=b"",
    )


def test_underscore_twins_are_dropped_and_lone_underscores_kept() -> None:
    data = b"GET / HTTP/1.1\r\nHost: x\r\nX_A: 1\r\nX-A: 2\r\nX_B: 3\r\nContent_Length: 4\r\n\r\n"
    assert parse_head(data).headers == ((b"host", b"x"), (b"x-a", b"2"), (b"x_b", b"3"))


def test_a_head_must_be_complete_and_alone() -> None:
    for data in (b"", b"\r\n", PLAIN[:-2], PLAIN[:-1], PLAIN + b"x", PLAIN + b"\r\n", PLAIN + PLAIN):
        with pytest.raises(BadRequest) as caught:
            parse_head(data)
        assert caught.value.status == 400


def test_limits_of_heads_are_exact() -> None:
    def status(data: bytes) -> int:
        verdict = read(data, len(data))
        return verdict.fault[0] if verdict.fault else 200

    rest = len(b"GET / HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n")
    for size, expected in ((request_head.MAX_HEAD, 200), (request_head.MAX_HEAD + 1, 431)):
        assert status(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * (size - rest) + b"\r\n\r\n") == expected
    for count, expected in ((request_head.MAX_FIELDS, 200), (request_head.MAX_FIELDS + 1, 431)):
        assert status(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * (count - 1) + b"\r\n") == expected
    fields = b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * request_head.MAX_FIELDS
    assert doomed(fields) is None
    assert (fault := doomed(fields + b"A: a\r\n")) is not None
    assert fault.status == 431
    assert doomed(b"GET /" + b"a" * (request_head.MAX_HEAD - 6)) is None
    assert doomed(b"GET /" + b"a" * (request_head.MAX_HEAD - 5)) is not None


def test_find_head() -> None:
    assert find_head(PLAIN + b"body\r\n\r\n") == len(PLAIN)
    assert find_head(PLAIN[:-1]) == -1
    assert find_head(bytearray(PLAIN), len(PLAIN) - 4) == len(PLAIN)
    assert find_head(PLAIN, len(PLAIN) - 3) == -1


@pytest.mark.parametrize(
    "partial",
    [
        b"\x16",
        b"\n",
        b" ",
        b"GET /\x00",
        b"GET  ",
        b"GET / HTTP/1.1\r\nHost: x\n",
        b"GET / HTTP/1.1\r\n ",
        b"A" * 33,
    ],
)
def test_an_invalid_head_is_refused_at_its_first_bad_byte(partial: bytes) -> None:
    assert doomed(partial) is not None
    assert doomed(partial[:-1]) is None


def test_hostile_heads_take_linear_time() -> None:
    """Rule 3: no backtracking. The bound is generous; quadratic matching would take minutes."""
    size = request_head.MAX_HEAD - 100
    begun = time.monotonic()
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\nA:" + b" " * size + b"\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + b"a" * size + b"/\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a:\r\n" * (size // 4) + b"\x01\r\n\r\n",
        b"GET http://" + b"a" * size + b"@ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:" + b"a ," * (size // 3) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection:" + b" ," * (size // 2) + b"\r\nHost: x\r\n\r\n",
        b"GET /" + b"%41" * (size // 3) + b"% HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        with pytest.raises(BadRequest):
            parse_head(data)
    assert time.monotonic() - begun < 30


# ---------------------------------------------------------------- properties

PIECES = st.sampled_from(
    [PLAIN, b"Host: x\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"]
    + b"GET|POST| |/|*|http://x|%4|?|#|HTTP/1.|1|0|9|\r\n|\r|\n|:|\t|\x00|\xff|_|\r\n\r\n".split(b"|")
    + [b"Expect: 100-continue\r\n", b"GET / HTTP/1.1\r\n"]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A corpus request with a few bytes cut out or put in."""
    data = bytearray(draw(st.sampled_from([c.data for kind in ("valid", "invalid") for c in cases(kind)])))[
        :1500
    ]
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        data[begin : begin + draw(st.integers(0, 3))] = draw(st.one_of(PIECES, st.binary(max_size=3)))
    return bytes(data)


REQUESTS = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=30).map(b"".join), damaged())


@settings(max_examples=600, deadline=None, derandomize=True)
@given(REQUESTS)
@example(b"\r\n\r\n")
@example(b"\r\n\r\r\n\r\n")
def test_random_bytes_are_refused_or_read_the_same_in_any_pieces(data: bytes) -> None:
    whole = read(data, len(data) or 1)
    assert read(data, 1) == whole
    assert read(data, 3) == whole


@settings(max_examples=600, deadline=None, derandomize=True)
@given(REQUESTS)
def test_nothing_but_bad_request_is_raised(data: bytes) -> None:
    for text in (data, data + b"\r\n\r\n", PLAIN[:-2] + data + b"\r\n\r\n"):
        doomed(text)
        try:
            head = parse_head(text)
        except BadRequest as fault:
            assert 400 <= fault.status < 600
            refusal = Refusal(fault.status, fault.code, fault.message)
            assert json.loads(refusal.body()) == {"code": fault.code, "message": fault.message}
        else:
            assert doomed(text) is None
            assert not set(head.path) & set(map(chr, range(32)))
            assert head.version == (1, 0) or [name for name, _ in head.headers].count(b"host") == 1


@settings(max_examples=300, deadline=None, derandomize=True)
@given(REQUESTS, st.integers(0, 1500))
def test_doomed_from_where_the_last_call_stopped(data: bytes, at: int) -> None:
    at = min(at, len(data))
    if find_head(data) < 0 and doomed(data[:at]) is None:
        first, second = doomed(data), doomed(data, at)
        assert (first and first.message) == (second and second.message)


# ---------------------------------------------------------------- the log's line, and constants


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"POST /predict HTTP/1.1\r\nhost: a\r\n\r\n", b"POST /predict 1.1"),
        (b"GET /a%20b?c=d HTTP/1.0\r\n\r\n", b"GET /a%20b 1.0"),
        (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", b"OPTIONS * 1.1"),
    ],
)
def test_the_access_log_has_method_path_and_version(data: bytes, line: bytes) -> None:
    assert parse_head(data).line() == line


def test_status_lines() -> None:
    assert request_head.STATUS_LINES[200] == b"HTTP/1.1 200 OK\r\n"
    assert request_head.STATUS_LINES[431] == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    assert set(request_head.STATUS_LINES) == set(range(100, 600))
    assert all(line.count(b"\r\n") == 1 for line in request_head.STATUS_LINES.values())


# ---------------------------------------------------------------- somebody else's corpus

# Where we differ from gunicorn on purpose.
ACCEPTED_HERE = {
    "006.http": "a request line of 4 KiB and more fits into our 32 KiB",
    "017.http": "as does a field of more than 8190 bytes",
    "limit_header_default_01.http": "the same",
    "007.http": "the same",
    "008.http": "the same",
}
REFUSED_HERE = {
    "005.http": "a fragment in the target",
    "025.http": "two transfer-encoding fields",
    "029.http": "two transfer-encoding fields",
    "030.http": "two transfer-encoding fields",
    "025_line.http": "a transfer coding other than chunked",
    "rfc9112_smuggle_gzip_chunked_01.http": "a transfer coding other than chunked",
    "rfc9112_smuggle_te_identity_chunked_01.http": "a transfer coding other than chunked",
    "rfc9112_target_absolute_https_01.http": "https on a port without TLS",
    "rfc9112_target_absolute_userinfo_01.http": "a user name in the target",
    "rfc9112_target_authority_connect_01.http": "CONNECT",
    "rfc9112_target_authority_ipv6_01.http": "CONNECT",
    "031.http": "an unknown method",
}


def gunicorn_cases() -> list[tuple[str, str, bytes]]:
    """(kind, name, bytes) of the cases in gunicorn's source archive that need no setting of its own."""
    folder = os.environ.get("TWOFOLD_GUNICORN_CORPUS", "")
    archives = sorted(Path(folder).glob("gunicorn-*.tar.gz")) if folder else []
    if not archives:
        return []
    found = []
    with tarfile.open(archives[-1]) as archive:
        texts = {
            Path(m.name).parts[-2:]: archive.extractfile(m) for m in archive if "/tests/requests/" in m.name
        }
        contents = {parts: handle.read() for parts, handle in texts.items() if handle is not None}
    for (kind, name), text in sorted(contents.items()):
        rule = contents.get((kind, name.removesuffix(".http") + ".py"), b"")
        if name.endswith(".http") and b"cfg.set" not in rule:
            found.append((kind, name, _unescaped(text)))
    return found


def _unescaped(text: bytes) -> bytes:
    """There a line end is written \\r\\n and other bytes \\0, \\t or \\xNN; real line feeds mean nothing."""
    text = text.replace(b"\n", b"").replace(b"\\0", b"\\x00")
    return text.decode("unicode_escape").encode("latin-1")


@pytest.mark.skipif(
    not gunicorn_cases(), reason="TWOFOLD_GUNICORN_CORPUS names no folder with gunicorn-*.tar.gz"
)
@pytest.mark.parametrize(
    ("kind", "name", "data"), gunicorn_cases(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_gunicorn_case(kind: str, name: str, data: bytes) -> None:
    if kind == "valid" and b"host:" not in data.lower():  # we insist on it, and that is tested above
        line, rest = data[:2], data[2:]
        before, _, after = rest.partition(b"\r\n")
        data = line + before + b"\r\nHost: x\r\n" + after
    verdict = read(data, len(data))
    assert read(data, 1) == verdict
    # A chunked body is never read: it is answered with 411, and the connection closed.
    refused = verdict.fault is not None or not verdict.heads or verdict.heads[-1].chunked
    if kind == "invalid":
        assert refused or name in ACCEPTED_HERE
    else:
        assert bool(verdict.heads) != (name in REFUSED_HERE)
