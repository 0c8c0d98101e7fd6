"""How instances are connected to, over real sockets: by name, by path, and by the socket they tell of."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import uvloop

from twofold.net.address import Address
from twofold.net.connect import connect


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def tcp(port: int, host: str = "127.0.0.1") -> Address:
    return Address(host, port)


def family(where: Address, local: str = "") -> int:
    """Of the socket that came of it."""

    async def dialled() -> int:
        with await connect(where, local) as sock:
            sock.getpeername()  # or it is not connected
            assert not sock.getblocking()
            return sock.family

    return uvloop.run(dialled())


def test_a_name_is_resolved(port: int) -> None:
    assert family(tcp(port, "localhost")) == socket.AF_INET


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "nobody.invalid"])
def test_an_unknown_name_is_a_failure_to_connect(host: str) -> None:
    """Whatever the resolver makes of it: else the request that waits would never hear of it."""
    with pytest.raises(OSError):
        family(tcp(80, host))


def test_a_refused_connection(port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        family(tcp(gone))


def test_the_unix_socket_is_preferred_while_it_exists(port: int) -> None:
    name = f"@twofold-{uuid4()}"
    assert family(tcp(port), name) == socket.AF_INET  # nobody is there
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name.replace("@", "\0"))
        server.listen()
        assert family(tcp(port), name) == socket.AF_UNIX
        assert family(tcp(port)) == socket.AF_INET


def test_a_unix_socket_whose_backlog_is_full(port: int, tmp_path: Path) -> None:
    """Told at once, and never taken for a connection: over TCP the kernel would let it wait."""
    name = f"@twofold-{uuid4()}"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as named:
        server.bind(name.replace("@", "\0"))
        named.bind(str(tmp_path / "s"))
        waiting = []
        for listener in (server, named):
            listener.listen(0)
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].connect(listener.getsockname())
        try:
            assert family(tcp(port), name) == socket.AF_INET
            with pytest.raises(BlockingIOError):
                family(Address(path=str(tmp_path / "s")))
        finally:
            for sock in waiting:
                sock.close()


def test_a_cancelled_connect_leaves_no_socket_behind() -> None:
    async def impatient() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
            address = server.getsockname()
            full = [socket.socket() for _ in range(3)]
            for sock in full:
                sock.setblocking(False)
                sock.connect_ex(address)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await connect(tcp(address[1]))
            for sock in full:
                sock.close()

    uvloop.run(impatient())  # a socket that is left would be a ResourceWarning, which is a failure here
