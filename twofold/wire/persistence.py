"""Whether a connection outlives the answer to a request, and how the answer says so (RFC 9112, 9.3). Pure."""

from __future__ import annotations

from twofold.wire.request_head import RequestHead


def closes(head: RequestHead, refused: bool) -> bool:
    """The client wants it, or a body stays unread: its end is not known, or nobody needs it (RFC 9112, 9.6)."""
    return not head.keep_alive or head.chunked or (refused and bool(head.content_length))


def connection_field(head: RequestHead, close: bool) -> bytes:
    """The Connection field of the answer; nothing where both sides know it without."""
    if close:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if head.version == (1, 0) else b""
