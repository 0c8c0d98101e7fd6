"""Whether a connection outlives the answer."""

from __future__ import annotations

import pytest

from twofold.wire import persistence
from twofold.wire.request_head import parse_head

CLOSE, KEEP = b"connection: close\r\n", b"connection: keep-alive\r\n"


@pytest.mark.parametrize(
    ("version", "fields", "refused", "close", "field"),
    [
        ("1.1", "", False, False, b""),
        ("1.1", "connection: close", False, True, CLOSE),
        ("1.0", "", False, True, CLOSE),
        ("1.0", "connection: keep-alive", False, False, KEEP),
        ("1.1", "content-length: 3", False, False, b""),
        ("1.1", "content-length: 3", True, True, CLOSE),
        ("1.1", "content-length: 0", True, False, b""),
        ("1.1", "", True, False, b""),
        ("1.1", "transfer-encoding: chunked", False, True, CLOSE),
    ],
)
def test_closes_and_says_so(version: str, fields: str, refused: bool, close: bool, field: bytes) -> None:
    lines = [f"POST / HTTP/{version}", "host: a", *([fields] if fields else [])]
    head = parse_head("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    assert persistence.closes(head, refused) is close
    assert persistence.connection_field(head, close) == field
