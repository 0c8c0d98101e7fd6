"""The listening sockets: bound once, kept through crashes and reloads, closed at the stop.

Touches the sockets and, for Unix sockets, their files.  A socket's accept queue lives as long as one process
has the socket open, so a proxy may die without a refused connection.
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
    """Listening sockets by the address text of the settings, in `held`."""

    held: dict[str, socket.socket] = field(default_factory=dict)

    def bind(self, texts: Iterable[str], backlog: int) -> None:
        """Bind the sockets that are missing: all of them, or none. Raises AddressError."""
        fresh: dict[str, socket.socket] = {}
        try:
            for text in texts:
                if text in self.held:
                    self.held[text].listen(backlog)  # the backlog may have changed
                else:
                    fresh[text] = _bound(text, backlog)
        except AddressError:
            for each in fresh.values():
                binding.retire(each)
            raise
        self.held |= fresh

    def release(self, keep: Iterable[str] = ()) -> None:
        """Close all sockets except `keep`, and remove their files."""
        for text in [text for text in self.held if text not in keep]:
            binding.retire(self.held.pop(text))

    def inherit(self, keep: Iterable[str]) -> None:
        """In a child: close this process's copies of all sockets except `keep`; files stay."""
        for text in [text for text in self.held if text not in keep]:
            self.held.pop(text).close()

    def url(self, text: str, secure: bool) -> str:
        """The URL of a socket, with the port that the kernel chose if the setting was 0."""
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
