"""One round of load: wrk against one path, and the cost of the server.  Loopback only.

wrk is the Debian package; post.lua prints its numbers as one JSON line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cpu import Tree, machine_time
from bench.environments import Unavailable

SCRIPT = Path(__file__).resolve().parent / "post.lua"
TIMEOUT_S = 20  # a request slower than this counts as an error
GRACE_SECONDS = 30


@dataclass(frozen=True)
class Target:
    """The target of a round: one path of one server, one body on disk."""

    port: int
    path: str
    body: Path
    header: str = ""


@dataclass(frozen=True)
class Round:
    """The result of one round.  Times in microseconds; `errors` counts non-2xx answers and socket errors."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    max_us: float
    errors: int
    cpu_us: float  # server processor time per request, all its processes
    other_cores: float  # cores kept busy by neither server nor load generator
    stolen_cores: float  # cores that the hypervisor gave to other guests

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "rate": self.rate}


def find_wrk() -> str:
    path = shutil.which("wrk")
    if path is None:
        raise Unavailable("wrk is not installed: apt-get install wrk")
    return path


def run_round(tree: Tree, target: Target, connections: int, seconds: float) -> Round:
    """Load `target` for this number of seconds. Raises RuntimeError if wrk fails."""
    command = [find_wrk(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    command += [f"--timeout={TIMEOUT_S}s", "-s", str(SCRIPT)]
    command += [f"http://127.0.0.1:{target.port}{target.path}"]
    environ = {**os.environ, "BENCH_BODY": str(target.body), "BENCH_HEADER": target.header}
    server_before, (busy_before, stolen_before), own_before = tree.seconds(), machine_time(), os.times()
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=seconds + GRACE_SECONDS
    )
    server, (busy, stolen), own = tree.seconds() - server_before, machine_time(), os.times()
    load = sum(own[:4]) - sum(own_before[:4])
    lines = [line for line in done.stdout.splitlines() if line.startswith("BENCH ")]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"wrk failed ({done.returncode}): {(done.stderr or done.stdout).strip()[-300:]}")
    told: dict[str, float] = json.loads(lines[0].removeprefix("BENCH "))
    requests = int(told["requests"])
    return Round(
        requests=requests,
        seconds=told["seconds"],
        p50_us=told["p50_us"],
        p99_us=told["p99_us"],
        max_us=told["max_us"],
        errors=int(sum(told[kind] for kind in ("connect", "read", "write", "status", "timeout"))),
        cpu_us=server / requests * 1e6 if requests else 0.0,
        other_cores=max(0.0, busy - busy_before - server - load) / told["seconds"],
        stolen_cores=(stolen - stolen_before) / told["seconds"],
    )
