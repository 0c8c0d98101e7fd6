"""The listening sockets: bound once, kept through every crash and reload, closed when it stops.

Touches the sockets and, for Unix sockets, their files.  Whoever holds a socket keeps its queue of
connections alive, which is why a proxy may die without one connection being refused.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from twofold.errors import AddressError
from twofold.net import address, binding
from twofold.net.address import Address


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
                binding.retire(each)
            raise
        self.held |= fresh

    def release(self, keep: Iterable[str] = ()) -> None:
        """Close all others, here and in the file system: nobody can connect there any more."""
        for text in [text for text in self.held if text not in keep]:
            binding.retire(self.held.pop(text))

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
    if where.is_unix:
        return binding.unix(where.path, backlog, shown=text)
    return binding.tcp(where.host, where.port, backlog, shown=text, setting="listen")
