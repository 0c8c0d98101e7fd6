"""Heads of answers: what is refused, how bodies end, and that a template says what parsing says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.loadbalancer.http import response_head
from twofold.loadbalancer.http.forwarding import answer_fields
from twofold.loadbalancer.http.response_head import BadResponse, HeadTemplates, parse

OK = (
    b"HTTP/1.1 200 OK\r\nserver: s\r\ndate: Mon, 23 Nov 2026 05:20:00 GMT\r\ncontent-type: text/plain\r\n"
    b"server-timing: predict;dur=0.003\r\nopc-request-id: A/B/C\r\ncontent-length: 20\r\n\r\n"
)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1234567890123456789\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\nbare: lf\n\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 999 No\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_ambiguous_responses_are_refused(raw: bytes) -> None:
    with pytest.raises(BadResponse):
        parse(raw)


@pytest.mark.parametrize(
    ("raw", "to_head", "framing", "length", "keep"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", False, response_head.LENGTH, 5, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", True, response_head.NOTHING, 0, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", False, response_head.CHUNKED, 0, True),
        (b"HTTP/1.1 200\r\n\r\n", False, response_head.TO_THE_END, 0, False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", False, response_head.LENGTH, 5, False),
        (
            b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\n",
            False, response_head.LENGTH, 5, True,
        ),
        (b"HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 5\r\n\r\n", False, 0, 5, False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, response_head.NOTHING, 0, True),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", False, response_head.NOTHING, 0, True),
        # A body that is announced may come, and would be taken for the next answer.
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", False, response_head.NOTHING, 0, False),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 9\r\n\r\n", False, response_head.NOTHING, 0, False),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", False, response_head.NOTHING, 0, True),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", False, response_head.NOTHING, 0, True),
    ],
)  # fmt: skip
def test_how_a_body_ends(raw: bytes, to_head: bool, framing: int, length: int, keep: bool) -> None:
    head = parse(raw, to_head)
    assert (head.framing, head.length, head.keep_alive) == (framing, length, keep)


def test_hop_by_hop_fields_are_dropped() -> None:
    head = parse(
        b"HTTP/1.1 200 OK\r\nConnection: X-Secret, keep-alive, content-length\r\nKeep-Alive: timeout=5\r\n"
        b"X-Secret: 1\r\nUpgrade: h2c\r\nProxy-Authenticate: x\r\nX-Kept: 2\r\ncontent-length: 0\r\n\r\n"
    )
    assert answer_fields(head.fields) == [(b"x-kept", b"2"), (b"content-length", b"0")]


def learn(templates: HeadTemplates, raw: bytes) -> response_head.HeadTemplate:
    made = templates.learn(raw, parse(raw))
    assert made is not None
    return made


def test_a_template_has_holes_where_answers_differ() -> None:
    template = learn(HeadTemplates(), OK)
    other = OK.replace(b"05:20:00", b"06:00:01").replace(b"A/B/C", b"D/E/F").replace(b": 20", b": 7")
    match = template.match(other)
    assert match and match.end() == len(other) and match["length"] == b"7" and match["request_id"] == b"D/E/F"
    assert not template.kept
    assert template.match(OK.replace(b"text/plain", b"text/html")) is None


def test_fields_that_stay_the_same_for_a_second_are_compared_as_one_string() -> None:
    template = learn(HeadTemplates(), OK)
    assert OK[: template.size] == template.start and template.start.endswith(b"text/plain\r\n")
    other = OK.replace(b"0.003", b"14.1").replace(b"A/B/C", b"D/E/F").replace(b": 20", b": 7")
    match = template.rest(other, template.size)
    assert match and match.end() == len(other) and match["length"] == b"7" and match["request_id"] == b"D/E/F"
    for bad in (b"a\nb", b"a\rb", b"a\0b", b"a\r\nx: y"):
        assert template.rest(OK.replace(b"predict;", bad), template.size) is None
    later = OK.replace(b"05:20:00", b"05:20:01")
    assert not later.startswith(template.start) and template.match(later)
    assert later.startswith(template.start) and template.rest(later, template.size)
    assert template.match(OK.replace(b"server: s", b"server: \n")) is None
    assert later.startswith(template.start)


def test_a_field_that_has_changed_becomes_a_hole() -> None:
    templates = HeadTemplates()
    learn(templates, OK)
    html = OK.replace(b"text/plain", b"text/html")
    template = learn(templates, html)
    assert template.match(OK) and template.match(html) and template.match(OK.replace(b"plain", b"css"))


def test_dropped_fields_are_cut_out_of_a_template() -> None:
    raw = OK.replace(b"server: s\r\n", b"Connection: keep-alive\r\nserver: s\r\nKeep-Alive: timeout=5\r\n")
    template = learn(HeadTemplates(), raw)
    match = template.match(raw)
    assert match and b"".join(match.group(*template.kept)) == OK[:-2]
    assert template.edit(raw + b"body", match, b"") == OK + b"body"


@pytest.mark.parametrize("dropped", [b"", b"Keep-Alive: timeout=5\r\n"])
def test_an_answer_without_an_id_gets_one(dropped: bytes) -> None:
    bare = OK.replace(b"opc-request-id: A/B/C\r\n", b"")
    assert bare != OK
    template = learn(HeadTemplates(), bare.replace(b"server: s\r\n", dropped + b"server: s\r\n"))
    raw = bare.replace(b"05:20:00", b"05:20:01").replace(b"server: s\r\n", dropped + b"server: s\r\n")
    match = template.match(raw)
    assert match and not template.has_id
    sent = template.edit(raw + b"body", match, b"X/Y/Z")
    assert parse(sent[: sent.index(b"body")]).request_id == b"X/Y/Z" and sent.count(b"opc-request-id") == 1
    assert sent.replace(b"opc-request-id: X/Y/Z\r\n", b"") == raw.replace(dropped, b"") + b"body"
    assert template.total == 0, "one alone says nothing of the next"
    assert template.edit(raw + b"yadb", match, b"Z") == sent.replace(b"X/Y/Z", b"Z").replace(b"body", b"yadb")
    assert (template.same, template.total) == (raw, len(raw + b"body"))
    again = template.opening + b"X/Y/Z" + (raw + b"body")[template.cut :]
    assert again == sent


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 1\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nopc-request-id: \r\ncontent-length: 1\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\n",
    ],
)
def test_heads_without_a_template_are_parsed_each_time(raw: bytes) -> None:
    assert HeadTemplates().learn(raw, parse(raw)) is None


def test_a_known_head_is_not_learnt_again() -> None:
    """Each connection learns for itself, and there is no end of connections."""
    templates = HeadTemplates()
    first = learn(templates, OK)
    for second in range(1000):
        date = b"05:%02d:%02d" % divmod(second, 60)
        assert learn(templates, OK.replace(b"05:20:00", date).replace(b": 20", b": %d" % second)) is first
    odd = OK.replace(b"date", b"Date")  # which it does not match
    assert learn(templates, odd).match(odd)


def test_learning_is_bounded() -> None:
    templates = HeadTemplates()
    made = [
        templates.learn(raw, parse(raw))
        for raw in (b"HTTP/1.1 200 OK\r\nx-%d: 1\r\ncontent-length: 1\r\n\r\n" % n for n in range(1000))
    ]
    assert sum(one is not None for one in made) == response_head.MAX_TEMPLATES


VALUES = st.binary(max_size=12).filter(lambda value: re.fullmatch(rb"[\x21-\x7e]*", value) is not None)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(VALUES, min_size=3, max_size=3),
    st.lists(VALUES, min_size=3, max_size=3),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_a_match_equals_parsing(first: list[bytes], second: list[bytes], length: int, cut: bool) -> None:
    def raw(values: list[bytes], size: int) -> bytes:
        a, b, c = values
        return (
            b"HTTP/1.1 200 OK\r\nX-A: %b\r\n%bX-B: %b\r\nopc-request-id: %b/\r\n"
            b"Content-Length: %d\r\n\r\n"
            % (a, b"connection: keep-alive\r\n" * cut, b, c.translate(None, b'"\\'), size)
        )

    templates = HeadTemplates()
    learn(templates, raw(first, 3))
    template = learn(templates, raw(second, 4))
    data = raw(second, length)
    match, head = template.match(data), parse(data)
    assert match and int(match["length"]) == head.length and match["request_id"] == head.request_id
    kept = b"".join(match.group(*template.kept)) if template.kept else data[:-2]
    if not template.kept:
        again = template.rest(data, template.size)
        assert again and again.groupdict().items() <= match.groupdict().items()
    assert parse(b"%b\r\n" % kept).fields == tuple(answer_fields(head.fields))


def see(template: response_head.HeadTemplate, raw: bytes, body: bytes) -> None:
    """Let the template meet the answer often enough to expect more like it."""
    for _ in range(2):
        match = template.match(raw + body)
        assert match
        assert template.edit(raw + body, match, b"") == raw + body


BODY = b"12345678901234567890"


def test_an_answer_that_differs_in_id_and_timing_is_compared() -> None:
    template = learn(HeadTemplates(), OK)
    assert not template.id_size
    see(template, OK, BODY)
    assert template.twin(OK + BODY) == b"A/B/C"
    other = OK.replace(b"0.003", b"14.1").replace(b"A/B/C", b"D/E/F")
    assert template.twin(other + BODY[::-1]) == b"D/E/F"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"05:20:00", b"05:20:01"),
        (b"A/B/C", b"A/B/CD"),  # of another size
        (b"A/B/C", b"A B/C"),
        (b"A/B/C", b"A\rB/C"),
        (b"A/B/C", b'A"B/C'),
        (b"A/B/C", b"A\\B/C"),
        (b"A/B/C", b"A/\xe4/C"),
        (b"predict;", b"a\r\nb: c;"),
        (b"predict;", b"a\0"),
        (b"predict;", b"a\n"),
        (b": 20", b": 21"),
        (b": 20", b": 7"),
        (b"server-timing", b"server-timinh"),
        (b"opc-request-id", b"opc-request-ie"),
    ],
)
def test_heads_that_are_no_twins_are_left_to_the_pattern(old: bytes, new: bytes) -> None:
    template = learn(HeadTemplates(), OK)
    see(template, OK, BODY)
    assert old in OK
    assert template.twin(OK.replace(old, new) + BODY) == b""


@pytest.mark.parametrize("body", [b"", BODY[1:], BODY + b"x", BODY + OK + BODY])
def test_a_body_of_another_length_is_no_twin(body: bytes) -> None:
    template = learn(HeadTemplates(), OK)
    see(template, OK, BODY)
    assert template.twin(OK + body) == b""
    assert template.twin(OK[:40] + body) == template.twin(body) == b""


def test_a_length_before_the_id_is_compared_to_its_end() -> None:
    """Or the rest of a longer body would be taken for the next answer, to somebody else."""
    line = next(line for line in OK.split(b"\r\n") if line.startswith(b"content-length"))
    head = OK.replace(line + b"\r\n", b"").replace(b"opc-request-id", line + b"\r\nopc-request-id")
    head = b"\r\n".join(one for one in head.split(b"\r\n") if not one.startswith(b"server-timing"))
    template = learn(HeadTemplates(), head)
    see(template, head, BODY)
    assert template.twin(head.replace(b"A/B/C", b"D/E/F") + BODY) == b"D/E/F"
    for longer in (b"200", b"20, 7", b"20 ", b"20x", b"020"):
        assert template.twin(head.replace(line, b"content-length: " + longer) + BODY) == b""


FIELDS = {
    "server": [b"server: s\r\n", b"server: st\r\n"],
    "timing": [b"server-timing: a;dur=1\r\n", b"Server-Timing:\tb, c;dur=22\r\n", b"server-timing: \x01\r\n"],
    "id": [b"opc-request-id: A/B/C\r\n", b"opc-request-id: D/E/F\r\n", b"Opc-Request-Id:  G/H/I\r\n"],
    "length": [b"content-length: 2\r\n", b"content-length: 20\r\n", b"content-length: 02\r\n"],
    "date": [b"date: Mon\r\n", b"date: Tue\r\n"],
}


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.permutations(list(FIELDS)), st.data())
def test_a_twin_equals_the_match_of_the_pattern(order: list[str], data: st.DataObject) -> None:
    def draw() -> bytes:
        lines = [data.draw(st.sampled_from(FIELDS[name])) for name in order]
        return b"HTTP/1.1 200 OK\r\n" + b"".join(lines) + b"\r\n{}"

    first = draw()
    template = HeadTemplates().learn(first[:-2], parse(first[:-2])) if b"\x01" not in first else None
    if template is None:
        return
    for whole in (draw() for _ in range(4)):
        match = template.match(whole)
        found = template.twin(whole) if template.id_size else b""
        if found:
            assert match and match["request_id"] == found and match.end() + int(match["length"]) == len(whole)
        if match is not None and match.end() + int(match["length"]) == len(whole):  # as edit() may expect
            see(template, whole[:-2], b"{}")
            again = whole.replace(b"A/B/C", b"X/Y/Z")
            expected = template.match(again)
            assert not template.id_size or (expected and template.twin(again) == expected["request_id"])
