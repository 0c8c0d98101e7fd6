"""The steward: the control plane. Decides who is in the pool and how much may pass, and publishes it.

Touches the board, the bucket's rate, the instances' health paths, the watched file and the resolver,
and serves the admin API and the status page.  No request passes here: when it dies, the proxies go
on with the last board, and the next steward takes up what the board says.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from time import monotonic_ns
from typing import Any

from loadbalancer import address, memory
from loadbalancer.address import Address, Upstream
from loadbalancer.autoscale import Autoscale
from loadbalancer.ledger import Ledger
from loadbalancer.membership import Names, WatchedFile
from loadbalancer.place import StewardPlace
from loadbalancer.probe import Verdict, probe
from server.log import say

FILE_INTERVAL = 0.5
FIRST_ROUND = 1.0  # seconds at most that the first board waits for the first probes
DRAIN_LOOK = 0.1
JITTER = 0.1
MEGABIT = 1_000_000


class Member:
    """One instance, from its first mention until it is drained and gone."""

    def __init__(self, name: str, where: Address, source: str, cell: int) -> None:
        self.name = name
        self.where = where
        self.source = source  # settings, file, dns or admin
        self.cell = cell
        self.verdict = Verdict()
        self.since_ns = 0
        self.draining = False
        self.leaving = False  # gone as soon as nothing is in its hands
        self.task: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        return "drain" if self.draining else "up" if self.verdict.up else "down"

    def entry(self) -> dict[str, Any]:
        return {
            "cell": self.cell, "name": self.name, "kind": "unix" if self.where.is_unix else "tcp",
            "host": self.where.host, "port": self.where.port, "path": self.where.path,
            "state": self.state, "workers": self.verdict.workers, "since_ns": self.since_ns,
            "source": self.source, "why": self.verdict.why, "leaving": self.leaving,
        }  # fmt: skip


class Steward:
    def __init__(self, place: StewardPlace) -> None:
        self.place = place
        self.config = place.config
        self.shared = memory.attach(place.memory_fd)
        self.board = memory.Board(self.shared)
        self.ledger = Ledger(self.shared, place.memory_fd)
        self.members: dict[str, Member] = {}
        self.named = [found for text in self.config.pool.upstream if (found := address.upstream(text))]
        self.file = WatchedFile(self.config.pool.upstream_file) if self.config.pool.upstream_file else None
        self.names = Names()
        self.mbps = self.maximum = 0.0
        self.autoscale: Autoscale | None = None
        self._booted = False
        self._inherit(self.board.read())

    # ------------------------------------------------------------------ what was before

    def _inherit(self, board: dict[str, Any]) -> None:
        """Take up what a predecessor had decided; settings that have changed since then win."""
        limits, band = board.get("limits", {}), self.config.bandwidth
        configured = [band.bandwidth_mbps, band.maximum_bandwidth_mbps]
        if limits.get("configured") == configured:
            self._set_limits(limits["mbps"], limits["maximum"], rate=self.ledger.rate)
        else:
            self._set_limits(band.bandwidth_mbps, band.maximum_bandwidth_mbps)
        for entry in board.get("instances", ()):
            where = Address(entry["host"], entry["port"], entry["path"])
            member = Member(entry["name"], where, entry["source"], entry["cell"])
            up = entry["state"] == "up"
            member.verdict = Verdict(up, ever=up or bool(entry["since_ns"]), workers=entry["workers"])
            member.since_ns = entry["since_ns"]
            member.draining, member.leaving = entry["state"] == "drain", entry["leaving"]
            self.members[member.name] = member

    def _set_limits(self, mbps: float, maximum: float, rate: int | None = None) -> None:
        self.mbps, self.maximum = mbps, maximum
        self.ledger.set_rate(int(mbps * MEGABIT) if rate is None else rate)
        self.autoscale = Autoscale(int(mbps * MEGABIT), int(maximum * MEGABIT)) if maximum else None

    # ------------------------------------------------------------------ what the admin may do

    def set_bandwidth(self, mbps: float, maximum: float = 0.0) -> None:
        """ValueError if the two do not fit together."""
        if not 0 <= mbps <= MEGABIT:
            raise ValueError("mbps must be from 0 (unlimited) to 1000000")
        if maximum and not mbps < maximum <= 2 * mbps:
            raise ValueError(f"max_mbps must be above {mbps:g} and at most {2 * mbps:g}")
        self._set_limits(mbps, maximum)
        say("info", f"bandwidth is {mbps:g} Mbps now" if mbps else "bandwidth is unlimited now")
        self.publish()

    def add(self, text: str) -> Member:
        """ValueError if it is no instance, or one too many."""
        found = address.upstream(text)
        if found is None or found.dns:
            raise ValueError(f"{text!r} is no instance; write http://HOST:PORT or unix:/PATH")
        known = self.members.get(found.name)
        if known is not None:
            known.draining = known.leaving = False
        else:
            known = self._join(found.name, found.address, "admin")
        self.publish()
        return known

    def drain(self, name: str) -> None:
        """It finishes what it has, and gets nothing more. KeyError if there is none of that name."""
        self.members[name].draining = True
        self.publish()

    def resume(self, name: str) -> None:
        self.members[name].draining = self.members[name].leaving = False
        self.publish()

    def remove(self, name: str) -> None:
        """It is drained, then forgotten. KeyError."""
        member = self.members[name]
        member.draining = member.leaving = True
        self.publish()

    def reload(self) -> None:
        os.kill(self.place.supervisor, signal.SIGHUP)

    # ------------------------------------------------------------------ membership

    def _join(self, name: str, where: Address, source: str) -> Member:
        taken = {member.cell for member in self.members.values()}
        free = next((cell for cell in range(memory.MAX_INSTANCES) if cell not in taken), None)
        if free is None:
            raise ValueError(f"a pool has at most {memory.MAX_INSTANCES} instances")
        self._clear(free)
        member = self.members[name] = Member(name, where, source, free)
        member.task = asyncio.get_running_loop().create_task(self._watch(member))
        return member

    def _clear(self, cell: int) -> None:
        """What was counted of the cell's last owner is nobody's now."""
        for proxy in range(memory.MAX_PROXIES):
            memory.cell(self.shared, proxy, cell)[:] = memoryview(bytes(memory.CELL_SIZE)).cast("Q")

    def _wanted(self) -> dict[str, tuple[Address, str]]:
        wanted: dict[str, tuple[Address, str]] = {}
        for source, upstreams in (
            ("settings", self.named),
            ("file", self.file.upstreams if self.file else []),
        ):
            for upstream in upstreams:
                if upstream.dns:
                    for found in self.names.addresses(upstream):
                        wanted[Upstream(found).name] = found, "dns"
                else:
                    wanted[upstream.name] = upstream.address, source
        return wanted

    def reconcile(self) -> None:
        """Join who is newly named, let go who is named no more; what the admin did stays."""
        wanted = self._wanted()
        for name, (where, source) in wanted.items():
            member = self.members.get(name)
            if member is None:
                self._join(name, where, source)
            elif member.leaving and member.source != "admin":
                member.draining = member.leaving = False
        for member in list(self.members.values()):
            if member.name not in wanted and member.source != "admin":
                member.draining = member.leaving = True
        self.publish()

    def outstanding(self, member: Member) -> int:
        return sum(
            memory.cell(self.shared, proxy, member.cell)[memory.OUTSTANDING]
            for proxy in range(memory.MAX_PROXIES)
        )

    def publish(self) -> None:
        if self._booted:
            band = self.config.bandwidth
            self.board.publish({
                "limits": {
                    "configured": [band.bandwidth_mbps, band.maximum_bandwidth_mbps],
                    "mbps": self.mbps, "maximum": self.maximum,
                },
                "instances": [member.entry() for member in self.members.values()],
            })  # fmt: skip

    # ------------------------------------------------------------------ tasks

    async def _watch(self, member: Member) -> None:
        """Probe it for ever."""
        settings = self.config.pool
        while True:
            answer = await probe(member.where, settings.probe_path, settings.probe_timeout)
            was_up = member.verdict.up
            if member.verdict.hear(*answer):
                if member.verdict.up != was_up:
                    self._turned(member)
                self.publish()
            spread = 1 + random.uniform(-JITTER, JITTER)
            await asyncio.sleep(settings.probe_interval * spread)

    def _turned(self, member: Member) -> None:
        if member.verdict.up:
            member.since_ns = monotonic_ns() if self._booted else 0
            say("info", f"{member.name} is up")
        else:
            say("warning", f"{member.name} is down: {member.verdict.why}")

    async def _watch_file(self, file: WatchedFile) -> None:
        while True:
            await asyncio.sleep(FILE_INTERVAL)
            if file.look():
                self.reconcile()

    async def _watch_names(self) -> None:
        while True:
            await asyncio.sleep(self.config.pool.resolve_interval)
            if await self.names.resolve_all(self._dns()):
                self.reconcile()

    async def _watch_leaving(self) -> None:
        while True:
            await asyncio.sleep(DRAIN_LOOK)
            gone = [one for one in self.members.values() if one.leaving and not self.outstanding(one)]
            for member in gone:
                if member.task is not None:
                    member.task.cancel()
                del self.members[member.name]
                say("info", f"{member.name} has left")
            if gone:
                self.publish()

    def _dns(self) -> list[Upstream]:
        named = self.named + (self.file.upstreams if self.file else [])
        return [upstream for upstream in named if upstream.dns]

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stopping.set)
        if self.file is not None:
            self.file.look()
        await self.names.resolve_all(self._dns())
        for member in self.members.values():
            member.task = loop.create_task(self._watch(member))
        self.reconcile()
        await self._first_round()
        self._booted = True
        self.publish()
        os.write(self.place.ready, b"r")
        tasks = [loop.create_task(self._watch_leaving()), loop.create_task(self._watch_names())]
        if self.file is not None:
            tasks.append(loop.create_task(self._watch_file(self.file)))
        await stopping.wait()

    async def _first_round(self) -> None:
        """Proxies should not hear of instances of whom nobody knows yet whether they are well."""
        waited = 0.0
        while waited < FIRST_ROUND and any(m.verdict.why == "not asked yet" for m in self.members.values()):
            await asyncio.sleep(0.01)
            waited += 0.01


def run(place: StewardPlace) -> int:
    """Be the steward until told to stop; the exit code."""
    asyncio.run(Steward(place).serve())
    return 0
