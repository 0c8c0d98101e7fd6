"""Binds and closes listening sockets; errors name a remedy.

Touches the sockets and, for a Unix socket at a path, its file.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from twofold.errors import AddressError
from twofold.net.unix_socket import bind_to_path


def tcp(host: str, port: int, backlog: int, shown: str, setting: str) -> socket.socket:
    """A non-blocking socket that listens on `host` and `port` (0: any free port).

    Raises AddressError with the address as `shown` and the `setting` to change.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: not a valid host name
        why = error.strerror if isinstance(error, OSError) else "it is not a host name"
        raise AddressError(f"cannot resolve host {host!r}: {why}", f"set {setting}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(backlog)  # fails if two processes have bound with SO_REUSEADDR at once
    except OSError as error:
        listener.close()
        remedy = "choose another port, or stop what listens there"
        if error.errno == errno.EACCES:
            remedy = "ports below 1024 need privileges: choose another"
        elif error.errno == errno.EADDRNOTAVAIL:
            remedy = f"this machine has no such address: set {setting}"
        raise AddressError(f"cannot bind {shown}: {error.strerror}", remedy) from None
    listener.setblocking(False)
    return listener


def unix(name: str, backlog: int, shown: str) -> socket.socket:
    """A non-blocking Unix socket that listens at the path `name`; abstract if `name` begins with NUL.

    Raises AddressError with the address as `shown`.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        if name.startswith("\0"):
            listener.bind(name)
        else:
            bind_to_path(listener, name)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        remedy = "choose another socket, or stop what listens there"
        if error.errno in (errno.ENOENT, errno.EACCES):
            remedy = "its folder must exist, and this user must be allowed to write there"
        raise AddressError(f"cannot bind {shown}: {error.strerror}", remedy) from None
    listener.setblocking(False)
    return listener


def retire(listener: socket.socket) -> None:
    """Close the socket in the process that owns it, and remove its file."""
    where = listener.getsockname()
    if isinstance(where, str):  # before close(), because afterwards the file may be another process's
        Path(where).unlink(missing_ok=True)
    listener.close()
