"""The real load balancer as a process of its own: started on a free port, looked into, and ended by its id.

What it keeps count of is read from its shared memory, as the controller reads it.  `settled` is the
accounting that every fault must leave behind: nothing in hand, nothing waiting, and no descriptor that
does not belong to a connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually_async
from tests.support.instance_process import alive, descendants, free_port, kill
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.lease import SharedBucket
from twofold.telemetry.counters import totals

ROOT = Path(__file__).parents[3]
START_TIMEOUT = 20.0
MEMFD = "/memfd:twofold-balance"


@dataclass
class Balancer:
    """`upstreams` is the watched file that names the instances."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    output: Path
    upstreams: Path
    shared: mmap | None = None
    memory_fd: int = -1
    spare_fds: dict[int, int] = field(default_factory=dict)  # open in a proxy besides its connections

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def printed(self) -> str:
        return self.output.read_text(errors="replace")

    def access(self) -> list[dict[str, Any]]:
        path = self.folder / "logs" / "access.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        if self.shared is not None:
            self.shared.close()
            os.close(self.memory_fd)
            self.shared = None

    # ------------------------------------------------------------------ what it keeps count of

    def look(self) -> mmap:
        """Its memory, mapped here."""
        if self.shared is None:
            self.memory_fd, self.shared = memory_of(self.process.pid)
        return self.shared

    def total(self, cell: int) -> int:
        return totals(shared_memory.read_counters(self.look()))[cell]

    def table(self) -> dict[str, Any]:
        return shared_memory.endpoint_table(self.look()).read()

    def state(self, url: str) -> str:
        """What the controller says of an instance: up, down or drain; "" when it does not know it."""
        return next(
            (str(one["state"]) for one in self.table().get("instances", ()) if one["name"] == url), ""
        )

    def cell(self, url: str, word: int) -> int:
        """What the proxies counted of an instance, added up."""
        number = next(one["cell"] for one in self.table()["instances"] if one["name"] == url)
        shared = self.look()
        return sum(
            int(shared_memory.cell(shared, proxy, number)[word]) for proxy in range(shared_memory.MAX_PROXIES)
        )

    def ejected(self, url: str) -> bool:
        return self.cell(url, shared_memory.EJECTED_UNTIL) != 0

    def bucket(self) -> SharedBucket:
        shared = self.look()
        return SharedBucket(shared, self.memory_fd)

    def outstanding(self) -> int:
        return sum(
            self.cell(one["name"], shared_memory.OUTSTANDING) for one in self.table().get("instances", ())
        )

    # ------------------------------------------------------------------ its processes

    def children(self) -> set[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(pid) for pid in listed.split() if alive(int(pid))}

    def proxies(self) -> list[int]:
        return accepting(self.port, self.children())

    def rss(self) -> int:
        """KiB of the proxies' own memory; pages of the code that they run are not counted."""
        return sum(_status(pid, "RssAnon") for pid in self.proxies())

    def cpu(self) -> float:
        """Seconds of CPU that the proxies have used."""
        ticks = os.sysconf("SC_CLK_TCK")
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.proxies()]
        return sum(int(each[11]) + int(each[12]) for each in fields) / ticks

    async def end(self, number: int = signal.SIGTERM, timeout: float = 15.0) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        until = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < until:
            await asyncio.sleep(0.01)
        if self.process.poll() is None:
            below = descendants(self.process.pid)
            kill(self.process.pid)
            for pid in below:
                kill(pid)
            self.process.wait(5)
            raise AssertionError(f"did not end within {timeout} s\n{self.printed()[-2000:]}")
        return int(self.process.returncode)

    # ------------------------------------------------------------------ membership

    def name(self, urls: Iterable[str]) -> None:
        """Who is in the pool: written as an editor would, and noticed within half a second."""
        fresh = self.upstreams.with_suffix(".new")
        fresh.write_text("".join(f"{url}\n" for url in urls))
        fresh.replace(self.upstreams)

    # ------------------------------------------------------------------ the accounting

    def remember_fds(self) -> None:
        """What its proxies hold now, while they have no connection, is what they may hold later."""
        self.spare_fds = {pid: _open_fds(pid) for pid in self.proxies()}

    async def settled(self, seconds: float = 3.0) -> None:
        """Nothing in hand, no client, and as many descriptors as before but for idle connections."""
        await eventually_async(lambda: not self._unsettled(), lambda: str(self._unsettled()), seconds)

    def _unsettled(self) -> dict[str, int]:
        counted = totals(shared_memory.read_counters(self.look()))
        counts = {
            "inside": counted[shared_memory.INSIDE],
            "waiting": counted[shared_memory.WAITING],
            "throttled": counted[shared_memory.THROTTLED],
            "clients": counted[shared_memory.OPEN_CONNECTIONS],
            "outstanding": self.outstanding(),
        }
        now = {pid: _open_fds(pid) for pid in self.spare_fds if alive(pid)}
        if now and len(now) == len(self.spare_fds):
            surplus = sum(now.values()) - sum(self.spare_fds.values())
            counts["descriptors"] = surplus - counted[shared_memory.UPSTREAM_OPEN]
        return {name: count for name, count in counts.items() if count}


def memory_of(pid: int) -> tuple[int, mmap]:
    """(fd, mapping) of a load balancer's memory, opened here."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(entry).startswith(MEMFD):
            fd = os.open(entry, os.O_RDWR)
            return fd, shared_memory.attach(fd)
    raise AssertionError(f"process {pid} has no such memory")


def _open_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise AssertionError(f"no {name} in the status of {pid}")


def _listener(port: int) -> str:
    """How /proc names the socket that listens on the port."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return f"socket:[{fields[9]}]"
    return ""


def accepting(port: int, among: Iterable[int]) -> list[int]:
    """The processes that take connections there: they poll, and have the listening socket."""
    name = _listener(port)
    return sorted(pid for pid in among if name and _holds(pid, name, "anon_inode:[eventpoll]"))


def _holds(pid: int, *names: str) -> bool:
    try:
        return set(names) <= {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:  # it has just ended
        return False


@asynccontextmanager
async def balance(
    folder: Path,
    *options: str,
    instances: Iterable[str] = (),
    wait: bool = True,
    limit: Callable[[], None] | None = None,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Balancer]:
    """Run it before `instances`, without a bandwidth unless `options` say so; all of it ends with the block.

    `limit` is called in the process before it becomes the load balancer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, output, upstreams = free_port(), folder / "output.txt", folder / "upstreams"
    upstreams.write_text("".join(f"{url}\n" for url in instances))
    command = [
        sys.executable, "-m", "twofold", "balance", "--listen", f"127.0.0.1:{port}",
        "--upstream-file", str(upstreams), "--bandwidth-mbps", "0", "--log-dir", str(folder / "logs"),
        "--admin-socket", str(folder / "admin.sock"), *options,
    ]  # fmt: skip
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TWOFOLD_")}
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=clean | {"PYTHONPATH": str(ROOT)} | dict(environ or {}), cwd=folder, preexec_fn=limit,
        )  # fmt: skip
    balancer = Balancer(process, port, folder, output, upstreams)
    try:
        if wait:
            await _started(balancer)
        yield balancer
    finally:
        below = descendants(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            await balancer.end(timeout=5)
        for pid in below:
            kill(pid)
        balancer.close()


async def _started(balancer: Balancer) -> None:
    def accepts() -> bool:
        if balancer.process.poll() is not None:
            raise AssertionError(f"did not start: {balancer.process.poll()}\n{balancer.printed()}")
        return "balancing on" in balancer.printed()

    await eventually_async(accepts, balancer.printed, START_TIMEOUT)
    await eventually_async(balancer.proxies, "a proxy", 5)
    named = balancer.upstreams.read_text().split()
    await eventually_async(lambda: all(map(balancer.state, named)), balancer.printed, 5)
    balancer.remember_fds()
