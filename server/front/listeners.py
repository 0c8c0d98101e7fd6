"""The sockets that an instance listens on: its port, and a Unix socket for whoever is on this machine.

Touches these sockets, and the file of a Unix socket that has a path.  An abstract one (`@NAME`, see
unix(7)) has no file: it is gone with its last process, however that has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from twofold.errors import AddressError
from twofold.net.unix_socket import bind_to_path
from twofold.server.config import AUTO, NONE, HttpSettings

SO_ATTACH_FILTER = 26
NO_SYN = b"".join(  # BPF, from the TCP header on: drop what has the flag SYN, keep all else
    struct.pack("=HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
)


@dataclass(frozen=True, slots=True)
class Listeners:
    """Shared by all fronts; bound and listening."""

    port: socket.socket
    local: socket.socket | None = None
    local_name: str = ""  # the path of the Unix socket, or @NAME of an abstract one

    @property
    def url(self) -> str:
        host, port = self.port.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def deafen(self) -> None:
        """Let the kernel drop whoever wants to connect from now on, in all processes.

        Closing a listener resets what waits to be accepted, so nobody new may join those who do; a client
        tries again in a second, and is refused.
        """
        program = ctypes.create_string_buffer(NO_SYN)
        with contextlib.suppress(OSError):  # a sandbox without filters loses one connection in some thousand
            pointer = struct.pack("@HP", len(NO_SYN) // 8, ctypes.addressof(program))
            self.port.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)
        if self.local is not None:
            with contextlib.suppress(OSError):  # another front has done it
                self.local.shutdown(socket.SHUT_RD)  # who waits is accepted, who comes is refused

    def close(self) -> None:
        """In this process only."""
        self.port.close()
        if self.local is not None:
            self.local.close()

    def retire(self) -> None:
        """Close them where they were made, for good."""
        if self.local_name.startswith("/"):
            Path(self.local_name).unlink(missing_ok=True)
        self.close()


def listen(http: HttpSettings) -> Listeners:
    """Raises AddressError."""
    port = _listen_at_port(http)
    try:
        local = _listen_locally(http)
    except AddressError:
        port.close()
        raise
    name = local.getsockname() if local is not None else ""
    return Listeners(port, local, f"@{name[1:].decode()}" if isinstance(name, bytes) else str(name))


def _listen_at_port(http: HttpSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: no host name can look like that
        why = error.strerror if isinstance(error, OSError) else "it is not a host name"
        raise AddressError(f"cannot resolve host {http.host!r}: {why}", "set host") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(http.backlog)  # two that bound with SO_REUSEADDR at once part here
    except OSError as error:
        listener.close()
        remedy = "choose another port, or stop what listens there"
        if error.errno == errno.EACCES:
            remedy = "ports below 1024 need privileges: choose another"
        elif error.errno == errno.EADDRNOTAVAIL:
            remedy = "this machine has no such address: set host"
        raise AddressError(f"cannot bind {http.host}:{http.port}: {error.strerror}", remedy) from None
    listener.setblocking(False)
    return listener


def _listen_locally(http: HttpSettings) -> socket.socket | None:
    if http.socket in ("", NONE):
        return None
    listener = socket.socket(socket.AF_UNIX)
    try:
        if http.socket == AUTO:
            listener.bind(f"\0twofold-{os.getpid()}-{secrets.token_hex(8)}")
        else:
            bind_to_path(listener, http.socket)
        listener.listen(http.backlog)
    except OSError as error:
        listener.close()
        remedy = "choose another socket, or stop what listens there"
        if error.errno in (errno.ENOENT, errno.EACCES):
            remedy = "its folder must exist, and this user must be allowed to write there"
        raise AddressError(f"cannot bind {http.socket}: {error.strerror}", remedy) from None
    listener.setblocking(False)
    return listener
