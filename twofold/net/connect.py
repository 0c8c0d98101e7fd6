"""Connects a socket to an instance.

Touches that socket and the resolver; names are resolved for each connection.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

from twofold.net.address import Address


async def connect(where: Address, local: str = "") -> socket.socket:
    """A connected, non-blocking socket. Raises OSError.

    `local`: an abstract Unix socket (`@NAME`) of the same server, which is tried first.
    """
    sock = _at(local.replace("@", "\0", 1)) if local else None
    if sock is not None:
        return sock
    if where.is_unix:
        return _connect_unix(where.path)
    loop = asyncio.get_running_loop()
    failure = OSError(f"{where.host} has no address")
    for family, kind, protocol, _, address in await _resolve(loop, where.host, where.port):
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await _connect(loop, sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Any]:
    """The results of getaddrinfo(). Raises OSError.

    A literal address is parsed without the resolver, which would start a thread: with a second thread, even
    an idle one, each malloc() takes a lock, and each send() and recv() is slower.
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        pass
    try:
        return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # not a valid host name
        raise OSError(f"{host} is no host name: {error}") from None


async def _connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: Any) -> None:
    """As loop.sock_connect(), which in uvloop uses a thread to resolve the address. Raises OSError."""
    failure = sock.connect_ex(address)
    if failure == errno.EINPROGRESS:
        writable = asyncio.Event()
        loop.add_writer(sock.fileno(), writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(sock.fileno())
        failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        raise OSError(failure, os.strerror(failure))


def _at(path: str) -> socket.socket | None:
    """A connection to the Unix socket, or None on failure; the caller then connects to the TCP port."""
    try:
        return _connect_unix(path)
    except OSError:
        return None


def _connect_unix(path: str) -> socket.socket:
    """Connect without waiting. Raises OSError; EAGAIN if the backlog is full."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock
