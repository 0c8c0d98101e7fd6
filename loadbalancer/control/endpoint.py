"""One instance as the controller knows it, from its first mention until it is drained and gone.

Pure.  Its record holds all that a later controller, perhaps of another version, has to know.
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
    origin: str = ""  # of DNS, the name that stood for it
    verdict: ProbeResult = field(default_factory=ProbeResult)
    since_ns: int = 0  # when it came back; 0: well from the start, or never
    drained: bool = False  # the admin wants it to get nothing more
    leaving: bool = False  # gone as soon as nothing is in its hands
    left_at_ns: int = 0

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
        """What is published of it."""
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
    """The endpoint that a predecessor has published."""
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
