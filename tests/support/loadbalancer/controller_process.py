"""A real controller in a process of its own, and a pretended proxy that fills counters and cells as one does.

Run as a program it is the controller: `overseen.py MEMORY READY STATUS OPTIONS`, descriptors and JSON.
A file `trap` beside its admin socket makes its probes raise what nobody expects.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually
from twofold.loadbalancer import shared_memory
from twofold.telemetry import histograms

ROOT = Path(__file__).parents[3]
PATIENCE = 10.0


class FakeProxy:
    """Shows what a proxy of this number would."""

    def __init__(self, shared: mmap, number: int = 0) -> None:
        self.shared = shared
        self.number = number
        self.counters = shared_memory.open_counters(shared, number)
        self.cells = self.counters.cells
        self.set(shared_memory.ACCEPTED, 1)

    def answer(
        self, many: int = 1, status: int = 200, us: int = 1000, sizes: tuple[int, int] = (0, 0)
    ) -> None:
        """So many requests were answered, each in so many microseconds. `sizes`: bytes in and out of each."""
        cells = self.cells
        cells[shared_memory.STATUS_CELL.get(status, shared_memory.OTHER_STATUS)] += many
        cells[shared_memory.BYTES_IN] += many * sizes[0]
        cells[shared_memory.BYTES_OUT] += many * sizes[1]
        cells[shared_memory.LATENCY + us.bit_length()] += many
        cells[shared_memory.LATENCY + histograms.SUM] += many * us
        self.counters.flush()

    def set(self, cell: int, value: int) -> None:
        self.cells[cell] = value
        self.counters.flush()

    def instance(self, cell: int, words: Mapping[int, int]) -> None:
        row = shared_memory.cell(self.shared, self.number, cell)
        for word, value in words.items():
            row[word] = value


class ControllerProcess:
    """`folder` has the admin socket; `shared` is what the controller and the proxies share."""

    def __init__(self, folder: Path, options: Mapping[str, object]) -> None:
        self.folder = folder
        self.options = {"admin_socket": str(folder / "admin.sock"), "probe_interval": "0.1", **options}
        self.socket = Path(str(self.options["admin_socket"]))
        self.memory_fd = shared_memory.create()
        self.shared = shared_memory.attach(self.memory_fd)
        self.table = shared_memory.endpoint_table(self.shared)
        self.status = socket.create_server(("127.0.0.1", 0))
        self.log = folder / "controller.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.status.getsockname()[1]}"

    def start(self) -> None:
        """Until it is ready, and the admin socket is there."""
        reading, writing = os.pipe()
        fds = (self.memory_fd, writing, self.status.fileno())
        command = [sys.executable, str(Path(__file__)), *map(str, fds), json.dumps(self.options)]
        with self.log.open("ab") as log:
            environ = os.environ | {"PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(command, pass_fds=fds, stderr=log, env=environ)
        os.close(writing)
        try:
            ready, _, _ = select.select([reading], [], [], PATIENCE)
            assert ready and os.read(reading, 1) == b"r", f"it does not begin: {self.log.read_text()}"
        finally:
            os.close(reading)
        eventually(self._listens, "the admin socket")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.socket)) == 0

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.status.close()
        os.close(self.memory_fd)

    # ------------------------------------------------------------------ what is seen

    def call(self, method: str, target: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON of the admin API's answer."""
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket))
        text = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        try:
            connection.request(method, target, text)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def state(self) -> dict[str, Any]:
        status, found = self.call("GET", "/state")
        assert status == 200
        state: dict[str, Any] = found
        return state

    def entries(self) -> dict[str, dict[str, Any]]:
        """The instances in the endpoint table."""
        return {entry["name"]: entry for entry in self.table.read().get("instances", ())}

    def states(self) -> dict[str, str]:
        return {name: entry["state"] for name, entry in self.entries().items()}

    def said(self, text: str) -> bool:
        return text in self.log.read_text()


@contextmanager
def running_controller(folder: Path, **options: object) -> Iterator[ControllerProcess]:
    made = ControllerProcess(folder, options)
    try:
        made.start()
        yield made
    finally:
        made.close()


def main() -> int:
    from twofold.loadbalancer import config
    from twofold.loadbalancer.child_context import ControllerContext
    from twofold.loadbalancer.control import controller, health_check

    shared, ready, status = map(int, sys.argv[1:4])
    settings = config.load(None, {}, json.loads(sys.argv[4]))
    listener = socket.socket(fileno=status)
    trap, put = settings.admin_path().with_name("trap"), health_check.Probe.put

    async def trapped(self: Any, where: Any) -> Any:
        if trap.exists():
            raise RuntimeError("trapped")
        return await put(self, where)

    health_check.Probe.put = trapped  # type: ignore[method-assign]
    return controller.run(ControllerContext(shared, settings, os.getppid(), listener, ready, 40))


if __name__ == "__main__":
    sys.exit(main())
