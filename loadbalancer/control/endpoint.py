"""One instance in the controller, from its discovery until its removal.

Pure.  Its record contains all that the next controller, perhaps of another version, needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from twofold.loadbalancer.control.health_check import ProbeResult
from twofold.loadbalancer.endpoint_record import DOWN, DRAIN, UP, EndpointRecord
from twofold.net.address import Address


@dataclass(slots=True)
class Endpoint:
    name: str
    where: Address
    source: str
    cell: int
    origin: str = ""  # the DNS name that resolved to it
    verdict: ProbeResult = field(default_factory=ProbeResult)
    since_ns: int = 0  # monotonic time at which it recovered; 0: healthy from the start, or never
    drained: bool = False  # the admin drains it
    leaving: bool = False  # it is removed when it has no outstanding requests
    left_at_ns: int = 0  # when `leaving` was set

    @property
    def state(self) -> str:
        if self.drained or self.leaving:
            return DRAIN
        return UP if self.verdict.up else DOWN

    def leave(self, now_ns: int) -> None:
        if not self.leaving:
            self.leaving, self.left_at_ns = True, now_ns

    def stay(self) -> None:
        self.leaving = self.drained = False

    def record(self) -> EndpointRecord:
        """The record for the endpoint table."""
        return EndpointRecord(
            name=self.name,
            cell=self.cell,
            state=self.state,
            workers=self.verdict.workers,
            since_ns=self.since_ns,
            where=self.where,
            local=self.verdict.local if self.where.is_loopback else "",
            source=self.source,
            origin=self.origin,
            drained=self.drained,
            leaving=self.leaving,
            healthy=self.verdict.up,
            was_healthy=self.verdict.was_up,
            why=self.verdict.why,
        )


def from_record(record: EndpointRecord, now_ns: int) -> Endpoint:
    """The endpoint of a record that the previous controller published."""
    return Endpoint(
        name=record.name,
        where=record.where,
        source=record.source,
        cell=record.cell,
        origin=record.origin,
        verdict=ProbeResult(record.healthy, record.was_healthy, record.workers, record.why),
        since_ns=record.since_ns,
        drained=record.drained,
        leaving=record.leaving,
        left_at_ns=now_ns,
    )
