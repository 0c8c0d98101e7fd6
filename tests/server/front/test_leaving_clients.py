"""What a front goes on doing when its clients do not stay, and other matters of its tick."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.instance_process import Instance, serve, write_artifact

EXAMPLES = Path(__file__).parents[3] / "examples"
SLOW = """
import time


def load_model():
    return None


def predict(data, model=None):
    time.sleep(0.1)
    return data
"""
REQUEST = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n[1]"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Instance]:
    with serve(write_artifact(tmp_path / "m", SLOW), tmp_path, "--replicas", "1") as instance:
        yield instance


def ask_and_reset(server: Instance, stay: float) -> None:
    with socket.create_connection((server.host, server.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(REQUEST)
        time.sleep(stay)


def test_a_client_that_leaves_at_once_is_counted_and_logged(server: Instance) -> None:
    # Between two ticks the front's clock is older than a request that comes and goes in between.
    for wait in range(20):
        ask_and_reset(server, stay=0.002)
        time.sleep(0.002 * wait)
    server.wait_until(lambda: len([r for r in server.log("access") if r["data"]["status"] == 499]) == 20)
    gone = [r["data"]["totalLatency"] for r in server.log("access") if r["data"]["status"] == 499]
    assert all(0 <= latency < 1000 for latency in gone), gone
    assert server.predict([1]).status == 200
    server.wait_until(lambda: b"connections_open 1.0" in server.call("/metrics").body)
    assert b"bug in the front" not in server.output.read_bytes()


def test_ipv6_and_no_host(tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with serve(EXAMPLES / "echo", tmp_path, "--host", "::1", "--replicas", "1", wait=False) as instance:
        instance.wait_until(lambda: "serving at" in instance.printed(), timeout=30)
        with socket.create_connection(("::1", instance.port)) as client:
            client.sendall(b"GET /health/ HTTP/1.0\r\n\r\n")
            head = client.makefile("rb").read()
    assert head.startswith(b"HTTP/1.1 307 ") and b"location: http://[::1]" in head
