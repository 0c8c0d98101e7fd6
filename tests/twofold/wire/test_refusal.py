"""What is said where there is no result."""

from __future__ import annotations

import json

import pytest

from twofold.wire.refusal import LATE_HEAD, LENGTH, Refusal, error_body, too_large, try_later


def test_the_body_is_the_contracts() -> None:
    text = 'say "\u00e9"\n'
    assert json.loads(error_body("A", text)) == {"code": "A", "message": text}
    assert Refusal(400, "A", text).body() == error_body("A", text)


def test_a_refusal_that_time_cures_says_when() -> None:
    later = try_later(503, "ServiceUnavailable", "the queue is full", 7)
    assert later == Refusal(503, "ServiceUnavailable", "the queue is full", b"retry-after: 7\r\n")


@pytest.mark.parametrize(
    ("refusal", "faulty"),
    [
        (LENGTH, True),
        (too_large(9), True),
        (LATE_HEAD, False),
        (try_later(429, "TooManyRequests", "", 1), False),
        (Refusal(503, "ServiceUnavailable", ""), False),
    ],
)
def test_some_are_the_requests_fault(refusal: Refusal, faulty: bool) -> None:
    assert refusal.faulty is faulty
