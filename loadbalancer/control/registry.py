"""Who is in the pool: joins those that are named, drains those that are named no more, obeys the admin.

Touches the cells of the shared memory: the outstanding requests in them say when somebody may go, and
a cell is cleared before it is given to the next.  What the admin did holds against file and DNS: one
that was removed stays away until it is added again, or is no more named.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from time import monotonic_ns
from typing import Any

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.control.discovery import Wanted
from twofold.loadbalancer.control.endpoint import Endpoint, from_record
from twofold.loadbalancer.endpoint_record import ADMIN, from_json
from twofold.logs.console import say
from twofold.net import address
from twofold.net.address import Address

DWELL_NS = 200_000_000  # the proxies may not have seen yet that one drains, nor shown what it has in hand


class Registry:
    def __init__(self, shared: mmap.mmap) -> None:
        self._shared = shared
        self.endpoints: dict[str, Endpoint] = {}
        self.removed: set[str] = set()  # by the admin, though somebody names them

    def inherit(self, entries: Iterable[Mapping[str, Any]], removed: Iterable[str]) -> None:
        """Take up what a predecessor has left; raises KeyError or TypeError if that makes no sense."""
        endpoints = [from_record(from_json(entry), monotonic_ns()) for entry in entries]
        if len({endpoint.cell for endpoint in endpoints}) != len(endpoints):
            raise KeyError("two instances with one cell")
        self.endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self.removed = set(removed)

    # ------------------------------------------------------------------ what the admin may do

    def find(self, text: str) -> Endpoint:
        """By its name, or without what every name begins with. KeyError if there is none."""
        upstream = address.upstream(text) or address.upstream(f"http://{text}")
        for name in (text, upstream.name if upstream else text):
            if name in self.endpoints:
                return self.endpoints[name]
        raise KeyError(text)

    def add(self, text: str) -> Endpoint:
        """ValueError if it is no instance, or one too many."""
        found = address.upstream(f"http://{text}" if address.tcp(text) else text)
        if found is None or found.dns:
            raise ValueError(f"{text!r} is no instance; write HOST:PORT or unix:/PATH")
        self.removed.discard(found.name)
        known = self.endpoints.get(found.name)
        if known is None:
            return self._join(found.name, found.address, ADMIN)
        known.source = ADMIN if known.leaving else known.source
        known.stay()
        return known

    def remove(self, endpoint: Endpoint) -> None:
        """It is drained, then forgotten."""
        if endpoint.source != ADMIN:
            self.removed.add(endpoint.name)
        endpoint.leave(monotonic_ns())

    # ------------------------------------------------------------------ what others name

    def reconcile(self, wanted: Mapping[str, Wanted], certain: bool = True) -> None:
        """Join who is newly named, let go who is named no more. `certain`: nobody is still to be heard."""
        if certain:
            self.removed &= wanted.keys()
        for name, who in wanted.items():
            if name not in self.removed:
                self._want(name, who)
        for endpoint in self.endpoints.values():
            if endpoint.name not in wanted and endpoint.source != ADMIN:
                endpoint.leave(monotonic_ns())

    def _want(self, name: str, who: Wanted) -> None:
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            try:
                self._join(name, who.where, who.source).origin = who.origin
            except ValueError as error:
                say("error", f"{name} is left out: {error}")
        elif endpoint.source != ADMIN:
            endpoint.source, endpoint.origin, endpoint.leaving = who.source, who.origin, False

    def _join(self, name: str, where: Address, source: str) -> Endpoint:
        taken = {endpoint.cell for endpoint in self.endpoints.values()}
        free = next((cell for cell in range(shared_memory.MAX_INSTANCES) if cell not in taken), None)
        if free is None:
            raise ValueError(f"a pool has at most {shared_memory.MAX_INSTANCES} instances")
        # What was counted of the cell's last owner is nobody's now.
        for proxy in range(shared_memory.MAX_PROXIES):
            shared_memory.cell(self._shared, proxy, free)[:] = memoryview(
                bytes(shared_memory.CELL_SIZE)
            ).cast("Q")
        endpoint = self.endpoints[name] = Endpoint(name, where, source, free)
        return endpoint

    # ------------------------------------------------------------------ who may go

    def outstanding(self, endpoint: Endpoint) -> int:
        """Requests in its hands."""
        return sum(
            shared_memory.cell(self._shared, proxy, endpoint.cell)[shared_memory.OUTSTANDING]
            for proxy in range(shared_memory.MAX_PROXIES)
        )

    def part(self, now_ns: int) -> list[Endpoint]:
        """Forget those that leave and have nothing in hand any more."""
        gone = [
            endpoint
            for endpoint in self.endpoints.values()
            if endpoint.leaving
            and now_ns - endpoint.left_at_ns >= DWELL_NS
            and not self.outstanding(endpoint)
        ]
        for endpoint in gone:
            del self.endpoints[endpoint.name]
        return gone

    def published(self) -> dict[str, Any]:
        """What the endpoint table says of it, and a successor needs."""
        return {
            "instances": [endpoint.record().to_json() for endpoint in self.endpoints.values()],
            "removed": sorted(self.removed),
        }
