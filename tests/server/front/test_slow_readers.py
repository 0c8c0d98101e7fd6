"""Clients that ask faster than they read: nobody's memory grows, nothing is held for ever."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.instance_process import Instance, serve, write_artifact

SCORE = """
def load_model():
    return None


def predict(data, model=None):
    return "x" * data
"""
QUEUE = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("slow")
    options = ["--queue-size", str(QUEUE), "--idle-timeout", "4", "--body-timeout", "4"]
    with serve(write_artifact(folder / "m", SCORE), folder, "--replicas", "1", *options) as instance:
        yield instance


def connect(server: Instance, buffer: int = 4096) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(10)
    client.connect((server.host, server.port))
    return client


def asking(size: int) -> bytes:
    body = b"%d" % size
    return b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def read_answer(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(client)
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    assert head.startswith(b"HTTP/1.1 200 ") and found
    while len(body) < int(found[1]):
        body += _some(client)
    return body


def _some(client: socket.socket) -> bytes:
    some = client.recv(1 << 20)
    assert some, "closed too soon"
    return some


def memory(server: Instance) -> int:
    """Bytes of all processes."""
    total = 0
    for pid in server.descendants():
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(size) for size in re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)) * 1024
    return total


def room_of_the_socket(server: Instance) -> int:
    """How much of an answer the kernel takes for a client that does not read."""
    with connect(server) as client:
        client.sendall(asking(16 << 20))
        rooms = [0]

        def full() -> bool:
            """It has not grown for a while."""
            rooms.append(waiting_to_be_sent(server.port))
            return rooms[-1] > 0 and rooms[-5:] == [rooms[-1]] * 5

        eventually(full, rooms)
        return rooms[-1]


def waiting_to_be_sent(port: int) -> int:
    """Most bytes in the send queue of a connection of the port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    queues = [fields[4] for fields in lines if fields[1].endswith(f":{port:04X}") and fields[3] == "01"]
    return max((int(queue.split(":")[0], 16) for queue in queues), default=0)


def test_the_end_of_a_large_answer_may_wait_for_the_reader(server: Instance) -> None:
    # Whatever part of an answer the socket did not take at once, the connection serves on.
    room = room_of_the_socket(server)
    for rest in range(-160_000, 160_000, 20_000):
        with connect(server) as client:
            client.sendall(asking(room + rest))
            time.sleep(0.02)
            assert len(read_answer(client)) == room + rest + 2
            client.sendall(asking(1))
            assert read_answer(client) == b'"x"', f"{rest} beyond the socket's room"


def test_a_client_that_does_not_read_is_not_read_from(server: Instance) -> None:
    before, sent, ahead = memory(server), 0, asking(60_000) * 100
    with connect(server) as client:
        client.settimeout(0.5)
        until = time.monotonic() + 4
        try:
            while time.monotonic() < until:
                sent += client.send(ahead)
        except TimeoutError:
            pass
        assert memory(server) - before < 30 << 20, f"after {sent} bytes of requests"


def test_pipelined_requests_of_a_slow_reader_are_all_answered(server: Instance) -> None:
    with connect(server) as client:
        client.sendall(asking(60_000) * 100 + asking(7))
        time.sleep(0.5)
        stream, expected = b"", 100 * 60_000
        while stream.count(b"x") < expected or not stream.endswith(b'"xxxxxxx"'):
            stream += _some(client)
        assert stream.count(b"HTTP/1.1 200 ") == 101


def test_a_client_that_never_reads_is_disconnected(server: Instance) -> None:
    stuck = [connect(server, 2048) for _ in range(8)]
    for client in stuck:
        client.sendall(asking(60_000) * 80)
    opened = "twofold_connections_open 0.0"  # the one that asks has its answer before it is counted
    server.wait_until(lambda: opened in server.call("/metrics").body.decode(), timeout=30)
    for client in stuck:
        client.close()
