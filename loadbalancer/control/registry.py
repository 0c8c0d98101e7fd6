"""The members of the pool: adds instances that sources name, and drains those no longer named.

Touches the cells of the shared memory: an instance is removed when its cells show no outstanding requests,
and a cell is cleared before it is reassigned.  The admin's decisions override file and DNS: a removed
instance is not added again until the admin adds it or the sources stop naming it.
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

DWELL_NS = 200_000_000  # time in which every proxy applies the drain and writes its outstanding requests


class Registry:
    def __init__(self, shared: mmap.mmap) -> None:
        self._shared = shared
        self.endpoints: dict[str, Endpoint] = {}
        self.removed: set[str] = set()  # by the admin, while a source names them

    def inherit(self, entries: Iterable[Mapping[str, Any]], removed: Iterable[str]) -> None:
        """Adopt the state of the previous controller. Raises KeyError or TypeError if it is inconsistent."""
        endpoints = [from_record(from_json(entry), monotonic_ns()) for entry in entries]
        if len({endpoint.cell for endpoint in endpoints}) != len(endpoints):
            raise KeyError("two instances with one cell")
        self.endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self.removed = set(removed)

    # ------------------------------------------------------------------ operations of the admin

    def find(self, text: str) -> Endpoint:
        """By name, with or without "http://". Raises KeyError if there is none."""
        upstream = address.upstream(text) or address.upstream(f"http://{text}")
        for name in (text, upstream.name if upstream else text):
            if name in self.endpoints:
                return self.endpoints[name]
        raise KeyError(text)

    def add(self, text: str) -> Endpoint:
        """Add an instance, or cancel its removal or drain. Raises ValueError if invalid or too many."""
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
        """Drain the endpoint, then remove it."""
        if endpoint.source != ADMIN:
            self.removed.add(endpoint.name)
        endpoint.leave(monotonic_ns())

    # ------------------------------------------------------------------ instances that sources name

    def reconcile(self, wanted: Mapping[str, Wanted], certain: bool = True) -> None:
        """Add the instances that are newly named, drain those no longer named.

        `certain`: every source has answered, so absence from `wanted` means removal.
        """
        if certain:
            self.removed &= wanted.keys()
        for name, instance in wanted.items():
            if name not in self.removed:
                self._want(name, instance)
        for endpoint in self.endpoints.values():
            if endpoint.name not in wanted and endpoint.source != ADMIN:
                endpoint.leave(monotonic_ns())

    def _want(self, name: str, instance: Wanted) -> None:
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            try:
                self._join(name, instance.where, instance.source).origin = instance.origin
            except ValueError as error:
                say("error", f"{name} is left out: {error}")
        elif endpoint.source != ADMIN:
            endpoint.source, endpoint.origin, endpoint.leaving = instance.source, instance.origin, False

    def _join(self, name: str, where: Address, source: str) -> Endpoint:
        taken = {endpoint.cell for endpoint in self.endpoints.values()}
        free = next((cell for cell in range(shared_memory.MAX_INSTANCES) if cell not in taken), None)
        if free is None:
            raise ValueError(f"a pool has at most {shared_memory.MAX_INSTANCES} instances")
        # Clear the counts of the cell's previous instance.
        for proxy in range(shared_memory.MAX_PROXIES):
            shared_memory.cell(self._shared, proxy, free)[:] = memoryview(
                bytes(shared_memory.CELL_SIZE)
            ).cast("Q")
        endpoint = self.endpoints[name] = Endpoint(name, where, source, free)
        return endpoint

    # ------------------------------------------------------------------ removal

    def outstanding(self, endpoint: Endpoint) -> int:
        """The number of outstanding requests at all proxies."""
        return sum(
            shared_memory.cell(self._shared, proxy, endpoint.cell)[shared_memory.OUTSTANDING]
            for proxy in range(shared_memory.MAX_PROXIES)
        )

    def part(self, now_ns: int) -> list[Endpoint]:
        """Remove and return the leaving endpoints without outstanding requests."""
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
        """The state for the endpoint table, from which the next controller resumes."""
        return {
            "instances": [endpoint.record().to_json() for endpoint in self.endpoints.values()],
            "removed": sorted(self.removed),
        }
