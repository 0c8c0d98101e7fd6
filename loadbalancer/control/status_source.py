"""Collects the status of the load balancer: the controller's decisions and the proxies' counts.

Touches the shared memory for reading, the bucket under its lock, and the certificate's file.
"""

from __future__ import annotations

import asyncio
import mmap
import time
from pathlib import Path
from time import monotonic_ns
from typing import Any

from twofold import __version__
from twofold.errors import ConfigError
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.lease import SharedBucket
from twofold.loadbalancer.bandwidth.policy import BandwidthPolicy
from twofold.loadbalancer.control import sliding_window, status_view
from twofold.loadbalancer.control.registry import Registry
from twofold.native import load


class StatusSource:
    """`recent`: the latest readings. `sampled`: an event that is set and cleared with every reading."""

    def __init__(
        self, shared: mmap.mmap, bucket: SharedBucket, registry: Registry, limits: BandwidthPolicy, tls: str
    ) -> None:
        """`tls`: the path of the certificate, or ""."""
        self.recent = sliding_window.SlidingWindow()
        self.sampled = asyncio.Event()
        self._shared = shared
        self._bucket = bucket
        self._registry = registry
        self._limits = limits
        self._certificate = tls
        self._started_unix_s = time.time()

    def state(self) -> dict[str, Any]:
        """The complete status, for JSON."""
        return status_view.state(self._facts(), self.recent, self._reading())

    def state_with_history(self) -> dict[str, Any]:
        """As `state`, with the history for the page's charts."""
        return {**self.state(), "history": status_view.history(self.recent)}

    def exposition(self) -> bytes:
        """The metrics in the Prometheus text format. The first call imports the library."""
        from twofold.loadbalancer.control import prometheus

        return prometheus.exposition(self._facts(), self.recent, self._reading())

    async def sample(self) -> None:
        """Take a reading every STEP_S seconds, and pass the utilisation to the bandwidth policy."""
        while True:
            reading = self._reading()
            self.recent.hear(reading, self._limits.rate)
            # Bytes are counted at the end of a request, so a queue for bandwidth implies full utilisation.
            throttled = reading.cells[shared_memory.THROTTLED] > 0
            self._limits.hear(reading.at_ns, 1.0 if throttled else self.recent.utilisation())
            self.sampled.set()
            self.sampled.clear()
            await asyncio.sleep(sliding_window.STEP_S)

    def _reading(self) -> sliding_window.Reading:
        cells = {name: endpoint.cell for name, endpoint in self._registry.endpoints.items()}
        return sliding_window.read(self._shared, cells, monotonic_ns())

    def _facts(self) -> status_view.StatusFacts:
        with self._bucket.open() as bucket:
            rate, debt = bucket.rate, bucket.debt(monotonic_ns()) if bucket.rate else 0
        return status_view.StatusFacts(
            version=__version__,
            started_unix_s=self._started_unix_s,
            rate=rate,
            debt=debt,
            mbps=self._limits.mbps,
            maximum=self._limits.maximum,
            endpoints=[endpoint.record() for endpoint in self._registry.endpoints.values()],
            certificate_expires=self._certificate_expires(),
            reloads_refused=shared_memory.RefusedReloads(self._shared).read(),
            compiled=load.used(),
            hung=shared_memory.hung(self._shared),
        )

    def _certificate_expires(self) -> int:
        """Unix time in seconds; 0 without a readable certificate. The proxies report read errors."""
        if not self._certificate:
            return 0
        from twofold.loadbalancer.access import tls  # imports a large library

        try:
            return tls.not_after(Path(self._certificate))
        except ConfigError:
            return 0
