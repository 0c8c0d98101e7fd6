"""Real instances for tests: start `twofold serve` as a process, talk to it, end it by its id."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.support.eventually import eventually

T = TypeVar("T")

START_TIMEOUT = 30.0


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Instance:
    process: subprocess.Popen[bytes]
    host: str
    port: int
    folder: Path
    output: Path
    pids: set[int] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def call(
        self,
        path: str,
        body: bytes | None = None,
        timeout: float = 30.0,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        fields = (
            {"content-type": "application/json", **(headers or {})} if body is not None else headers or {}
        )
        request = urllib.request.Request(self.url + path, data=body, headers=dict(fields))
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def predict(self, value: Any, timeout: float = 30.0) -> Answer:
        return self.call("/predict", json.dumps(value).encode(), timeout)

    def health(self) -> dict[str, Any]:
        status: dict[str, Any] = self.call("/health").json()
        return status

    def metric(self, name: str) -> float:
        """A sample of GET /metrics; `name` as it stands there, with its labels."""
        lines = self.call("/metrics").body.decode().splitlines()
        (value,) = [line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")]
        return float(value)

    def holds(self, requests: int) -> None:
        """Until so many requests are in it: in the queue or in predict()."""
        self.wait_until(lambda: self.metric("twofold_requests_inside") == requests)

    def replica_pids(self) -> list[int]:
        return [replica["pid"] for replica in self.health()["replicas"] if replica["pid"]]

    def descendants(self) -> set[int]:
        """Every process below the supervisor."""
        return descendants(self.process.pid)

    def printed(self) -> str:
        return self.output.read_text(errors="replace")

    def log(self, stream: str) -> list[dict[str, Any]]:
        path = self.folder / "logs" / f"{stream}.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_until(self, condition: Callable[[], T], timeout: float = 10.0) -> T:
        """`eventually`, with what the instance has printed in the failure."""
        return eventually(condition, lambda: f"{condition}\n{self.printed()[-3000:]}", timeout, _pause)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            for pid in self.descendants() | {self.process.pid}:
                kill(pid)
            self.process.wait(5)
            raise


def _pause() -> None:
    """Between two looks, each of which may be a request: longer than usual, to leave the processor alone."""
    time.sleep(0.05)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def alive(pid: int) -> bool:
    """Running, that is neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(
                    Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
                )
            except OSError:
                continue
    found: set[int] = set()
    frontier = {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_artifact(folder: Path, score: str, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.py").write_text(score)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@contextmanager
def serve(
    artifact: Path, folder: Path, *options: str, wait: bool = True, environ: Mapping[str, str] | None = None
) -> Iterator[Instance]:
    """Run `twofold serve`; with `wait`, until it announces itself. Ends it, and all of it, at the end."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output.txt"
    command = [
        sys.executable, "-m", "twofold", "serve", str(artifact), "--port", str(port),
        "--log-dir", str(folder / "logs"), "--cache-dir", str(folder / "cache"), *options,
    ]  # fmt: skip
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("TWOFOLD_", "WEB_CONC"))}
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**clean, **(environ or {})},
        )
    instance = Instance(process, "127.0.0.1", port, folder, output)

    def announced() -> bool:
        return instance.url in instance.printed()

    try:
        if wait:
            instance.wait_until(lambda: process.poll() is not None or announced(), START_TIMEOUT)
            assert announced(), f"did not start: {process.poll()}\n{instance.printed()}"
        yield instance
    finally:
        below = instance.descendants()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                kill(process.pid)
                process.wait(5)
        for pid in below:
            kill(pid)
