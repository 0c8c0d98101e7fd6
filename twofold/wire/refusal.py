"""An error response: status, code, message. Pure.

Bodies are the contract's `{"code", "message"}`.  Messages name the relevant setting or log.  Server and load
balancer format the response themselves, because the other fields differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    code: str
    message: str
    headers: bytes = b""  # complete field lines

    @property
    def faulty(self) -> bool:
        """Whether the request itself is invalid, so that a retry would be refused, too."""
        return 400 <= self.status < 500 and self.status not in (408, 429)

    def body(self) -> bytes:
        return error_body(self.code, self.message)


LENGTH = Refusal(411, "LengthRequired", "send a Content-Length; chunked bodies are not accepted")
LATE_HEAD = Refusal(408, "RequestTimeout", "the head did not arrive in time")
LATE_BODY = Refusal(408, "RequestTimeout", "the body did not arrive in time")


def too_large(limit: int) -> Refusal:
    """413; `limit` in bytes."""
    return Refusal(413, "PayloadTooLarge", f"the body may have at most {limit} bytes")


def try_later(status: int, code: str, message: str, seconds: int) -> Refusal:
    """A refusal with Retry-After in seconds (RFC 9110, 10.2.3)."""
    return Refusal(status, code, message, b"retry-after: %d\r\n" % seconds)


def error_body(code: str, message: str) -> bytes:
    """The JSON body of an error response."""
    return json.dumps({"code": code, "message": message}).encode()
