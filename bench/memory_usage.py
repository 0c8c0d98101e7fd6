"""Figures of twofold without load: time to ready, memory by role, idle connections, large round trips.

Starts `twofold serve` on loopback, opens at most 10,000 connections to it, and ends it.
"""

from __future__ import annotations

import http.client
import json
import resource
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.cpu import pss_of
from bench.running import Running, post, start
from bench.servers import CONTENDERS, REPLICAS
from bench.workloads import MODELS, Body, rows_body

ECHO = MODELS.parent.parent / "examples" / "echo"
STARTS = 5
IDLE = 10_000
PER_ADDRESS = 5_000  # connections to one 127.0.0.x, far below the ephemeral ports of a pair of addresses
BIG = 10 * 1000 * 1000
ROUND_TRIPS = 20
SETTLE_S = 2.0  # the tail of a large slot is freed shortly after the answer


@dataclass(frozen=True)
class MemoryUsage:
    """Seconds and bytes; `roles` is the PSS of each kind of process just after start."""

    starts: list[float]
    roles: dict[str, int]
    idle_connections: int
    idle_bytes_each: float
    big_before: dict[str, int] = field(default_factory=dict)
    big_after: dict[str, int] = field(default_factory=dict)
    big_ms: float = 0.0

    @property
    def start_seconds(self) -> float:
        return statistics.median(self.starts)

    @property
    def rest(self) -> int:
        """Everything but the model, in bytes."""
        return sum(size for role, size in self.roles.items() if role != "replica")

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "start_seconds": self.start_seconds, "rest": self.rest}


def measure(quick: bool) -> MemoryUsage:
    body = rows_body("46 B")
    starts = [_time_to_ready(body) for _ in range(3 if quick else STARTS)]
    with _echo(body) as running:
        roles = _memory(running)
        roles["replica"] //= REPLICAS
        idle = 1000 if quick else IDLE
        each = _idle_bytes(running, idle, body)
    with _echo(body) as running:
        before, after, milliseconds = _big_round_trips(running)
    return MemoryUsage(starts, roles, idle, each, before, after, milliseconds)


@contextmanager
def _echo(body: Body) -> Iterator[Running]:
    running = start(CONTENDERS[0], "rows", ECHO)
    try:
        running.wait(body)
        yield running
    finally:
        running.stop()


def _time_to_ready(body: Body) -> float:
    """Seconds from exec to the first right answer, asked every 5 ms."""
    began = time.monotonic()
    running = start(CONTENDERS[0], "rows", ECHO)
    try:
        running.wait(body, every_s=0.005)
        return time.monotonic() - began
    finally:
        running.stop()


def _by_role(running: Running) -> dict[str, list[int]]:
    """Role -> pids, from the health answer (replicas) and from what each process is."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    connection.request("GET", "/health")
    status = json.loads(connection.getresponse().read())
    connection.close()
    replicas = {int(replica["pid"]) for replica in status["replicas"]}
    roles: dict[str, list[int]] = {"replica": sorted(replicas)}
    for process in running.tree.members():
        if process.pid not in replicas:
            roles.setdefault(_role_of(process.pid, running.process.pid), []).append(process.pid)
    return roles


def _role_of(pid: int, root: int) -> str:
    if pid == root:
        return "supervisor"
    if b"fork_server" in Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0"):
        return "fork_server"
    # Only a front has an event loop.
    descriptors = [str(link.readlink()) for link in Path("/proc", str(pid), "fd").iterdir()]
    return "front" if "anon_inode:[eventpoll]" in descriptors else "log_writer"


def _idle_bytes(running: Running, count: int, body: Body) -> float:
    """Growth of the server's PSS per connection that has been answered once and now waits."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < count + 200:
        raise RuntimeError(f"{count} connections need a limit of open files above {hard}: see ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    head = f"POST /predict HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body.content)}\r\n"
    request = head.encode() + b"Content-Type: application/json\r\n\r\n" + body.content
    before = running.tree.pss()
    connections = []
    try:
        for number in range(count):
            connections.append(_open_idle(running.port, number, request))
        time.sleep(SETTLE_S)
        grown = running.tree.pss() - before
        if _sockets(running) < count:
            raise RuntimeError(f"the server closed some of {count} idle connections")
        return grown / count
    finally:
        for connection in connections:
            connection.close()


def _sockets(running: Running) -> int:
    front = _by_role(running)["front"]
    links = [link for pid in front for link in Path("/proc", str(pid), "fd").iterdir()]
    return sum(str(link.readlink()).startswith("socket:") for link in links)


def _open_idle(port: int, number: int, request: bytes) -> socket.socket:
    connection = socket.create_connection(
        ("127.0.0.1", port), timeout=10, source_address=(f"127.0.0.{2 + number // PER_ADDRESS}", 0)
    )
    connection.sendall(request)
    if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"idle connection {number} was not answered with 200")
    return connection


def _big_round_trips(running: Running) -> tuple[dict[str, int], dict[str, int], float]:
    """Memory by role before and after bodies of 10 MB there and back; and milliseconds of one."""
    body = json.dumps({"text": "x" * (BIG - 13)}, separators=(",", ":")).encode()
    post(running.port, "/predict", body[: 1000 * 1000] + b'"}')  # first use of everything
    time.sleep(SETTLE_S)
    before = _memory(running)
    took = []
    for _ in range(ROUND_TRIPS):
        began = time.monotonic()
        status, answer = post(running.port, "/predict", body)
        took.append(time.monotonic() - began)
        if status != 200 or len(answer) < len(body):
            raise RuntimeError(f"10 MB round trip: status {status}, {len(answer)} bytes: {answer[:200]!r}")
    time.sleep(SETTLE_S)
    return before, _memory(running), statistics.median(took) * 1000


def _memory(running: Running) -> dict[str, int]:
    """PSS in bytes by role, all replicas together."""
    return {role: sum(map(pss_of, pids)) for role, pids in _by_role(running).items()}
