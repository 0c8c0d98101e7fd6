"""A server that runs: started in a session of its own, asked once for a right answer, ended by its pids.

Touches loopback ports, its work folder under bench/.work/, and only the processes it started.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cpu import Tree, processes_alive, shared_memory_of
from bench.environments import BENCH, Unavailable, prepare
from bench.load import Target
from bench.servers import Contender, Setup, environ_for, models_folder
from bench.workloads import Body

WORK = BENCH / ".work"
READY_SECONDS = 60
STOP_SECONDS = 20
LOG_TAIL = 600  # characters of the server's output shown when it does not start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(port: int, path: str, body: bytes, header: str = "") -> tuple[int, bytes]:
    """Status and body of one POST; OSError or HTTPException where there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"}
    if header:
        name, value = header.split(": ", 1)
        headers[name] = value
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@dataclass
class Running:
    """One started server; `tree` holds all its processes."""

    contender: Contender
    process: subprocess.Popen[bytes]
    port: int
    work: Path

    @property
    def tree(self) -> Tree:
        return Tree(self.process.pid)

    def target(self, body: Path) -> Target:
        return Target(self.port, self.contender.path, body, self.contender.header)

    def check(self, body: Body) -> None:
        """Raises Unavailable unless the server gives the right answer to this body."""
        status, content = post(self.port, self.contender.path, body.content, self.contender.header)
        if status != 200:
            raise Unavailable(f"{self.contender.name} answers {body.name} with {status}: {content[:200]!r}")
        answer: Any = self.contender.read_answer(content)
        if answer != body.answer:
            raise Unavailable(f"{self.contender.name} answers {body.name} wrongly: {str(answer)[:200]}")

    def wait(self, body: Body, every: float = 0.1, within: float = READY_SECONDS) -> None:
        """Ask every so many seconds until the right answer comes; Unavailable if it never does."""
        deadline = time.monotonic() + within
        while True:
            try:
                return self.check(body)
            except (OSError, http.client.HTTPException, Unavailable, ValueError) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    said = (self.work / "output").read_text(errors="replace")[-LOG_TAIL:].strip()
                    raise Unavailable(f"{self.contender.name} did not start ({error}): {said}") from error
            time.sleep(every)

    def stop(self) -> None:
        """SIGTERM to the first process; whatever is left of its tree after a while is killed by pid."""
        members = {member.pid for member in self.tree.members()}
        memory = shared_memory_of(members)
        if self.process.poll() is None:
            self.process.terminate()
        # Helpers (the semaphore tracker of multiprocessing) tidy up after the first process has gone.
        deadline = time.monotonic() + STOP_SECONDS
        while (left := members & processes_alive()) and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(0.05)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for left_over in memory:  # some peers leave named semaphores behind even when they end cleanly
            left_over.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)


def start(contender: Contender, model: str, artifact: Path | None = None) -> Running:
    """Start without waiting; raises Unavailable with the reason where that is impossible."""
    python = prepare(contender.environment) if contender.environment else Path("python")
    port = free_port()
    work = WORK / f"{contender.name}-{model}-{port}"
    work.mkdir(parents=True)
    setup = Setup(python, port, artifact or models_folder(model), work)
    try:
        command = contender.command(setup)
        with open(work / "output", "wb") as output:
            process = subprocess.Popen(
                command,
                env=environ_for(contender, setup),
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except (OSError, Unavailable) as error:
        shutil.rmtree(work, ignore_errors=True)
        raise Unavailable(str(error)) from error
    return Running(contender, process, port, work)


@contextlib.contextmanager
def served(contender: Contender, model: str, body: Body) -> Iterator[Running]:
    """A server that has answered `body` rightly, ended on the way out."""
    running = start(contender, model)
    try:
        running.wait(body)
        yield running
    finally:
        running.stop()
