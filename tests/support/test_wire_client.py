"""wire_client: it reads what is right and refuses what is wrong, from a scripted peer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.wire_client import Closed, Silence, WireClient, WireError


@contextmanager
def peer(script: bytes, *, close: bool = True) -> Iterator[WireClient]:
    """A client whose server sends `script` at once and then closes, or waits for the client to do so."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(script)
            if close:
                connection.shutdown(socket.SHUT_WR)
            connection.settimeout(5)
            while connection.recv(1024):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with WireClient("127.0.0.1", listener.getsockname()[1], timeout=0.3) as client:
                yield client
        finally:
            thread.join()


def test_one_response_at_a_time() -> None:
    script = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: a \r\n\r\nhi"
        b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
        b"HTTP/1.0 500 \r\n\r\nrest"
    )
    with peer(script) as client:
        first = client.read_response()
        assert (first.status, first.body, first.interim, first.field("x")) == (200, b"hi", (100,), "a")
        assert first.keeps_alive
        assert client.read_response().body == b"abc0123456789"
        assert client.read_response("HEAD").body == b""
        last = client.read_response()
        assert (last.body, last.reason, last.keeps_alive) == (b"rest", "", False)
        assert client.closes()


@pytest.mark.parametrize(
    "script",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 600 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nendless",
    ],
)
def test_wrong_responses(script: bytes) -> None:
    with peer(script) as client, pytest.raises(WireError) as caught:
        client.read_response()
    assert not isinstance(caught.value, Closed | Silence)


def test_closed_too_early() -> None:
    for script in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi"):
        with peer(script) as client, pytest.raises(Closed):
            client.read_response()


def test_silence_and_staying_open() -> None:
    with peer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", close=False) as client:
        with pytest.raises(Silence):
            client.read_response()
        assert not client.closes(within=0.1)


def test_more_bytes_are_not_taken_for_a_close() -> None:
    with peer(b"x") as client:
        assert not client.closes()


def test_slow_sending_stops_when_the_server_speaks() -> None:
    with peer(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", close=False) as client:
        assert client.send_slowly(b"a" * 100_000) < 100_000
        assert client.read_response().status == 400
