"""Bytes of answers: ids of the contract's form that never repeat, timings, whole error answers."""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.server.front import responses
from twofold.server.front.responses import Responses
from twofold.server.replica import slots
from twofold.wire.refusal import Refusal
from twofold.wire.request_ids import RequestIds

GROUP = rb"[0-9A-F]{32}"


def test_ids_have_three_groups_and_never_repeat() -> None:
    first, second = RequestIds(), RequestIds()
    minted = [ids.mint(b"") for ids in (first, second) for _ in range(2000)]
    assert len(set(minted)) == len(minted)
    assert all(re.fullmatch(GROUP + rb"/" + GROUP + rb"/" + GROUP, one) for one in minted)


def test_the_callers_group_comes_first_and_the_rest_stays_unique() -> None:
    ids = RequestIds()
    minted = [ids.mint(b"caller-7") for _ in range(600)] + [ids.mint(b"") for _ in range(600)]
    assert all(one.startswith(b"caller-7/") for one in minted[:600])
    assert len({one.split(b"/")[2] for one in minted}) == 1200
    assert len({one.split(b"/")[1] for one in minted}) == 1, "the second group is the process"


def test_the_third_group_counts_across_the_texts_that_are_made_ahead() -> None:
    ids = RequestIds()
    counts = [int(ids.mint(b"").split(b"/")[2][16:], 16) for _ in range(1000)]
    assert counts == list(range(1, 1001))


def test_the_longest_id_fits_into_a_slot() -> None:
    caller = b"x" * 64
    assert len(RequestIds().mint(caller)) <= slots.MAX_REQUEST_ID


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, database=None)
def test_milliseconds_have_three_decimals(us: int) -> None:
    text = responses.millis(us)
    assert re.fullmatch(rb"\d+\.\d{3}", text) and round(float(text) * 1000) == us


@pytest.mark.parametrize("us", [responses.KNOWN_MILLIS - 1, responses.KNOWN_MILLIS])
def test_ready_made_and_formatted_milliseconds_meet(us: int) -> None:
    assert responses.millis(us) == b"%.3f" % (us / 1000)


def test_server_timing_is_in_milliseconds() -> None:
    assert (
        responses.timing(1, 2000, 30_000_000) == b"queue;dur=0.001, predict;dur=2.000, encode;dur=30000.000"
    )


def test_an_error_answer_is_whole() -> None:
    rendered = Responses()
    rendered.refresh(1_700_000_000.0)
    refusal = Refusal(405, "MethodNotAllowed", 'a "quoted" \N{SNOWMAN} text', b"allow: POST\r\n")
    head, _, body = rendered.error(refusal, b"A/B/C", b"connection: close\r\n").partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)
    assert status == b"HTTP/1.1 405 Method Not Allowed" and len(fields) == len(lines)
    assert int(fields[b"content-length"]) == len(body)
    assert json.loads(body) == {"code": refusal.code, "message": refusal.message}
    assert fields[b"allow"] == b"POST" and fields[b"connection"] == b"close"
    assert fields[b"opc-request-id"] == b"A/B/C" and fields[b"server-timing"] == responses.NO_TIMING
    assert parsedate_to_datetime(fields[b"date"].decode()).timestamp() == 1_700_000_000


def test_the_date_is_as_of_the_last_refresh() -> None:
    rendered = Responses()
    rendered.refresh(0.0)
    before = rendered.head((1, 2, 3), b"A/B/C", b"", 12)
    rendered.refresh(1.0)
    after = rendered.head((1, 2, 3), b"A/B/C", b"", 12)
    assert b"00:00:00 GMT" in before and b"00:00:01 GMT" in after
    assert after.endswith(b"content-length: 12\r\n\r\n")


@pytest.mark.parametrize("us", [0, 7, responses.KNOWN_MILLIS - 1, responses.KNOWN_MILLIS, 10**9])
@pytest.mark.parametrize("size", [0, 1, responses.KNOWN_LENGTHS - 1, responses.KNOWN_LENGTHS, 60000])
def test_a_joined_answer_has_the_bytes_of_a_formatted_one(us: int, size: int) -> None:
    rendered = Responses()
    for spent in ((us, 2, 3), (1, us, 3), (1, 2, us)):
        whole = rendered.whole(*spent, b"A/B/C", b"x" * size)
        assert whole == rendered.head(spent, b"A/B/C", b"", size) + b"x" * size
