"""How a limit is set: on ours through its admin socket, in the kernel as `tc tbf` on a loopback device.

The tbf functions change the loopback device of the network namespace they run in, so they refuse to
run where there is any other device or address: use `unshare --net`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.balance.proxies import program
from bench.servers import PROJECT

MTU = 1500
BURST = 131072  # bytes


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.path)


def set_bandwidth(path: str, mbps: float) -> None:
    """Through the admin API; raises OSError, or RuntimeError with what it answered."""
    connection = _Unix(path)
    try:
        content = json.dumps({"mbps": mbps})
        connection.request("PUT", "/bandwidth", content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"PUT /bandwidth was answered {answer.status}: {said[:200]!r}")
    finally:
        connection.close()


def _run(*command: str) -> str:
    done = subprocess.run([program(command[0]), *command[1:]], capture_output=True, text=True, timeout=10)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _tbf(verb: str, mbps: float) -> None:
    kbit = f"{round(mbps * 1000)}kbit"
    _run(
        "tc", "qdisc", verb, "dev", "lo", "root", "tbf", "rate", kbit, "burst", str(BURST), "latency", "500ms"
    )


def set_tbf(mbps: float) -> None:
    _tbf("change", mbps)


def no_tbf() -> None:
    _run("tc", "qdisc", "del", "dev", "lo", "root")


@contextlib.contextmanager
def behind_tbf(mbps: float, port: int) -> Iterator[None]:
    """A recording origin at `port`, on a loopback device that passes `mbps` in both directions together."""
    devices = json.loads(_run("ip", "-json", "link"))
    if any(device["ifname"] != "lo" and "UP" in device["flags"] for device in devices):
        raise RuntimeError("this is not a network namespace of its own")
    _run("ip", "link", "set", "lo", "mtu", str(MTU), "up")
    origin = subprocess.Popen(
        [sys.executable, "-m", "bench.balance.origin", "--port", str(port), "--record"], cwd=PROJECT
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        _tbf("add", mbps)
        yield
    finally:
        origin.terminate()
        origin.wait()
