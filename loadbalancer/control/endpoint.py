"""One instance as the controller knows it, from its first mention until it is drained and gone.

Pure.  What the board says of it is everything that a later controller, perhaps of another version, has
to know to go on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twofold.loadbalancer.control.health_check import ProbeResult
from twofold.net.address import Address

SETTINGS, FILE, DNS, ADMIN = "settings", "file", "dns", "admin"  # who has named it
UP, DOWN, DRAIN = "up", "down", "drain"


@dataclass(slots=True)
class Endpoint:
    name: str
    where: Address
    source: str
    cell: int
    origin: str = ""  # of DNS, the name that stood for it
    verdict: ProbeResult = field(default_factory=ProbeResult)
    since_ns: int = 0  # when it came back; 0: well from the start, or never
    drained: bool = False  # the admin wants it to get nothing more
    leaving: bool = False  # gone as soon as nothing is in its hands
    left_at: int = 0

    @property
    def state(self) -> str:
        if self.drained or self.leaving:
            return DRAIN
        return UP if self.verdict.up else DOWN

    def leave(self, now: int) -> None:
        if not self.leaving:
            self.leaving, self.left_at = True, now

    def stay(self) -> None:
        self.leaving = self.drained = False

    def entry(self) -> dict[str, Any]:
        """Its line on the board."""
        return {
            "cell": self.cell, "name": self.name, "kind": "unix" if self.where.is_unix else "tcp",
            "host": self.where.host, "port": self.where.port, "path": self.where.path,
            "local": self.verdict.local if self.where.is_loopback else "",
            "state": self.state, "workers": self.verdict.workers, "since_ns": self.since_ns,
            "source": self.source, "origin": self.origin, "drained": self.drained, "leaving": self.leaving,
            "well": self.verdict.up, "ever": self.verdict.ever, "why": self.verdict.why,
        }  # fmt: skip


def from_entry(entry: Mapping[str, Any], now: int) -> Endpoint:
    """The endpoint that a predecessor wrote down; raises KeyError if it is not what we write."""
    well = bool(entry.get("well", entry["state"] == UP))
    ever = well or bool(entry.get("ever", entry["since_ns"]))
    return Endpoint(
        name=entry["name"],
        where=Address(entry["host"], entry["port"], entry["path"]),
        source=entry.get("source", SETTINGS),
        cell=entry["cell"],
        origin=entry.get("origin", ""),
        verdict=ProbeResult(well, ever, entry["workers"], entry.get("why", "")),
        since_ns=entry["since_ns"],
        drained=bool(entry.get("drained", False)),
        leaving=bool(entry.get("leaving", False)),
        left_at=now,
    )
