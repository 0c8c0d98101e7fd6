"""Requests and answers as bytes: just enough of HTTP/1.1 for two ends that we hold ourselves.

Pure.  Both ends send Content-Length; an answer without it raises ValueError.
"""

from __future__ import annotations

import re
from functools import lru_cache

END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_WORK = re.compile(rb"\r\nx-work: *(\d+)", re.IGNORECASE)
_ANSWER = re.compile(rb"\r\nx-answer: *(\d+)", re.IGNORECASE)
_INSTANCE = re.compile(rb"\r\nx-instance: *([^\r]+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


def request_head(body: int, answer: int = -1, path: str = "/predict", json: bool = False) -> bytes:
    """Up to where x-work may follow: `head + b"x-work: 500\\r\\n\\r\\n"`, or `head + b"\\r\\n"`."""
    kind = "application/json" if json else "application/octet-stream"
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Type: {kind}", f"Content-Length: {body}"]
    if answer >= 0:
        lines.append(f"x-answer: {answer}")
    return "".join(f"{line}\r\n" for line in lines).encode()


def number(pattern: re.Pattern[bytes], head: bytes, otherwise: int) -> int:
    found = pattern.search(head)
    return int(found.group(1)) if found else otherwise


def content_length(head: bytes) -> int:
    """0 without the field."""
    return number(_LENGTH, head, 0)


def work_us(head: bytes) -> int:
    """Microseconds that a worker is to be busy with it."""
    return number(_WORK, head, 0)


def answer_bytes(head: bytes) -> int:
    """Bytes of body that the answer is to have."""
    return number(_ANSWER, head, 2)


@lru_cache(maxsize=256)
def answer_head(length: int, instance: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", "Content-Type: application/octet-stream", f"Content-Length: {length}"]
    return "".join(f"{line}\r\n" for line in (*lines, f"x-instance: {instance}", "")).encode()


def status(head: bytes) -> int:
    return int(head[9:12])


def instance(head: bytes) -> str:
    """Which origin answered; "" if the proxy itself did."""
    found = _INSTANCE.search(head)
    return found.group(1).decode() if found else ""


def answer_length(head: bytes) -> int:
    """Bytes of body that follow; ValueError where the answer does not say so."""
    length = number(_LENGTH, head, -1)
    if length < 0:
        raise ValueError(f"an answer without Content-Length: {head[:200]!r}")
    return length


def closes(head: bytes) -> bool:
    return _CLOSE.search(head) is not None
