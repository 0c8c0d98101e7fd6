"""Persistence of a connection after a response, and its Connection field (RFC 9112, 9.3). Pure."""

from __future__ import annotations

from twofold.wire.request_head import RequestHead


def closes(head: RequestHead, refused: bool) -> bool:
    """True if the client requests it, or if a body would stay unread (RFC 9112, 9.6).

    `refused`: the request is answered from its head alone.
    """
    return not head.keep_alive or head.chunked or (refused and bool(head.content_length))


def connection_field(head: RequestHead, close: bool) -> bytes:
    """The Connection field line of the response; empty where the version's default applies."""
    if close:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if head.version == (1, 0) else b""
