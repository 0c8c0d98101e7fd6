"""Whether a connection stays open after an answer, and how the answer says so (RFC 9112, 9.3). Pure."""

from __future__ import annotations

from twofold.wire.request_head import RequestHead


def closes(head: RequestHead, refused: bool) -> bool:
    """True where the client asked for it, or where a body would stay unread (RFC 9112, 9.6).

    `refused`: the request is answered from its head alone.
    """
    return not head.keep_alive or head.chunked or (refused and bool(head.content_length))


def connection_field(head: RequestHead, close: bool) -> bytes:
    """The Connection field of the answer; empty where the version's default holds."""
    if close:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if head.version == (1, 0) else b""
