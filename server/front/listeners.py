"""The sockets that an instance listens on: its port, and a Unix socket for clients on this machine.

Touches these sockets, and the file of a Unix socket that has a path.  An abstract one (`@NAME`, see
unix(7)) has no file: it is gone with its last process, however that has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import struct
from dataclasses import dataclass

from twofold.errors import AddressError
from twofold.net import binding
from twofold.net.address import Address
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
        return f"http://{Address(*self.port.getsockname()[:2])}"

    def stop_connecting(self) -> None:
        """Have the kernel drop new connection attempts from now on, in all processes.

        Closing a listener resets the connections that wait to be accepted: none may join them before that.
        A client whose attempt is dropped tries again in a second, and is refused.
        """
        program = ctypes.create_string_buffer(NO_SYN)
        with contextlib.suppress(OSError):  # a sandbox without filters loses one connection in some thousand
            pointer = struct.pack("@HP", len(NO_SYN) // 8, ctypes.addressof(program))
            self.port.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)
        if self.local is not None:
            with contextlib.suppress(OSError):  # another front has done it
                self.local.shutdown(socket.SHUT_RD)  # waiting connections are accepted, new ones refused

    def close(self) -> None:
        """In this process only."""
        self.port.close()
        if self.local is not None:
            self.local.close()

    def retire(self) -> None:
        """Close them where they were made, for good."""
        binding.retire(self.port)
        if self.local is not None:
            binding.retire(self.local)


def listen(http: HttpSettings) -> Listeners:
    """Raises AddressError."""
    port = binding.tcp(http.host, http.port, http.backlog, f"{http.host}:{http.port}", setting="host")
    try:
        local = _listen_locally(http)
    except AddressError:
        port.close()
        raise
    name = local.getsockname() if local is not None else ""
    return Listeners(port, local, f"@{name[1:].decode()}" if isinstance(name, bytes) else str(name))


def _listen_locally(http: HttpSettings) -> socket.socket | None:
    if http.socket in ("", NONE):
        return None
    name = f"\0twofold-{os.getpid()}-{secrets.token_hex(8)}" if http.socket == AUTO else http.socket
    return binding.unix(name, http.backlog, shown=http.socket)
