"""Decides the rate of the shared bucket: from settings, the admin, an earlier controller, and autoscaling.

Touches the rate of the shared bucket.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twofold.loadbalancer.bandwidth.autoscale import Autoscale
from twofold.loadbalancer.bandwidth.lease import SharedBucket
from twofold.loadbalancer.config import LEAST_MBPS, BandwidthSettings
from twofold.logs.console import say

MEGABIT = 1_000_000
MOST_MBPS = 1_000_000.0


class BandwidthPolicy:
    """`mbps` and `maximum` in 10^6 bit/s; a maximum of 0 disables autoscaling."""

    def __init__(self, bucket: SharedBucket, settings: BandwidthSettings, before: Mapping[str, Any]) -> None:
        """`before`: published() of an earlier controller; ignored if the settings have changed since."""
        self._bucket = bucket
        self._configured = [settings.bandwidth_mbps, settings.maximum_bandwidth_mbps]
        self._autoscale: Autoscale | None = None
        self.mbps, self.maximum = self._configured
        current = self._bucket.rate
        if before.get("configured") == self._configured:
            self.mbps, self.maximum = float(before["mbps"]), float(before["maximum"])
        else:
            current = 0
        low, high = int(self.mbps * MEGABIT), int(max(self.mbps, self.maximum) * MEGABIT)
        self._apply(min(max(current, low), high))

    def _apply(self, rate: int) -> None:
        self._bucket.set_rate(rate)
        self._autoscale = None
        if self.maximum:
            self._autoscale = Autoscale(int(self.mbps * MEGABIT), int(self.maximum * MEGABIT))
            self._autoscale.rate = rate

    @property
    def rate(self) -> int:
        """The current rate in bit/s; 0 is unlimited."""
        return self._bucket.rate

    def set(self, mbps: float, maximum: float = 0.0) -> None:
        """Set the bandwidth in 10^6 bit/s. Raises ValueError for values out of range."""
        if mbps and not LEAST_MBPS <= mbps <= MOST_MBPS:
            raise ValueError(f"mbps must be 0 (unlimited), or from {LEAST_MBPS:g} to {MOST_MBPS:.0f}")
        if maximum and not mbps < maximum <= 2 * mbps:
            raise ValueError(f"max_mbps must be above {mbps:g} and at most {2 * mbps:g}, or 0")
        self.mbps, self.maximum = mbps, maximum
        self._apply(int(mbps * MEGABIT))
        upto = f", up to {maximum:g} Mbps under load" if maximum else ""
        say("info", f"bandwidth is {mbps:g} Mbps now{upto}" if mbps else "bandwidth is unlimited now")

    def hear(self, now_ns: int, utilisation: float) -> None:
        """Record the current utilisation, 0 to 1, and apply autoscaling."""
        if self._autoscale is None:
            return
        before, rate = self.rate, self._autoscale.hear(now_ns, utilisation)
        if rate != before:
            self._bucket.set_rate(rate)
            say("info", f"bandwidth is {'raised' if rate > before else 'lowered'} to {rate / MEGABIT:g} Mbps")

    def published(self) -> dict[str, Any]:
        """The limits for the endpoint table, from which the next controller resumes."""
        return {"configured": self._configured, "mbps": self.mbps, "maximum": self.maximum}
