"""The listening sockets: bound once, kept through every crash and reload, closed when it stops.

Touches the sockets and, for Unix sockets, their files.  Whoever holds a socket keeps its queue of
connections alive, which is why a proxy may die without one connection being refused.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from twofold.errors import AddressError
from twofold.net import address
from twofold.net.address import Address
from twofold.net.unix_socket import bind_to_path


@dataclass(slots=True)
class ListenerSet:
    """By the texts that name them in the settings."""

    held: dict[str, socket.socket] = field(default_factory=dict)

    def bind(self, texts: Iterable[str], backlog: int) -> None:
        """Add what is missing, all of it or nothing. Raises AddressError."""
        fresh: dict[str, socket.socket] = {}
        try:
            for text in texts:
                if text in self.held:
                    self.held[text].listen(backlog)  # it may have been another number before
                else:
                    fresh[text] = _bound(text, backlog)
        except AddressError:
            for each in fresh.values():
                _close(each)
            raise
        self.held |= fresh

    def release(self, keep: Iterable[str] = ()) -> None:
        """Close all others, here and in the file system: nobody can connect there any more."""
        for text in [text for text in self.held if text not in keep]:
            _close(self.held.pop(text))

    def inherit(self, keep: Iterable[str]) -> None:
        """In a child: let go of all others, so that they close when their owners close them."""
        for text in [text for text in self.held if text not in keep]:
            self.held.pop(text).close()

    def url(self, text: str, secure: bool) -> str:
        """Where a client finds it, with the port that the kernel chose if that was 0."""
        where = self.held[text].getsockname()
        if isinstance(where, str):
            return f"unix:{where}"
        return f"{'https' if secure else 'http'}://{Address(where[0], where[1])}"


def _bound(text: str, backlog: int) -> socket.socket:
    where = address.listening(text)
    if where is None:
        raise AddressError(f"cannot listen on {text!r}", "write HOST:PORT or unix:/PATH")
    try:
        listener = _bound_unix(where.path) if where.is_unix else _bound_tcp(where)
        listener.listen(backlog)  # two that bound with SO_REUSEADDR at once part here
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a host name"
        raise AddressError(f"cannot resolve {where.host!r}: {why}", "set listen") from None
    except OSError as error:
        raise AddressError(f"cannot bind {text}: {error.strerror}", _remedy(error)) from None
    listener.setblocking(False)
    return listener


def _bound_tcp(where: Address) -> socket.socket:
    family, kind, protocol, _, place = socket.getaddrinfo(
        where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError:
        listener.close()
        raise
    return listener


def _bound_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        bind_to_path(listener, path)
    except OSError:
        listener.close()
        raise
    return listener


def _remedy(error: OSError) -> str:
    if error.errno == errno.EACCES:
        return "this user may not: choose another; ports below 1024 need privileges"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address: set listen"
    if error.errno == errno.ENOENT:
        return "the folder of the socket must exist"
    return "choose another, or stop what listens there"


def _close(listener: socket.socket) -> None:
    where = listener.getsockname()
    listener.close()
    if isinstance(where, str):
        Path(where).unlink(missing_ok=True)
