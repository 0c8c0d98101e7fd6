"""The dependencies of every part of a proxy, in one frozen value: configuration, clock, counters, limits.

Touches standard error, for warnings.  The process makes `Services` once; each connection holds a reference
to it and accesses nothing else of the process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import formatdate

from twofold.loadbalancer.bandwidth.limiter import BandwidthLimiter
from twofold.loadbalancer.config import Config
from twofold.loadbalancer.http.request_plan import ProxyPlan
from twofold.loadbalancer.http.response_head import HeadTemplates
from twofold.loadbalancer.proxy.admission import Admission
from twofold.logs.console import say
from twofold.logs.records import AccessRecord
from twofold.wire.request_ids import RequestIds

WARNING_PAUSE_S = 1.0


class ProxyState:
    """State that changes for the whole process. The tick writes it; connections read it."""

    __slots__ = ("_warned_s", "date", "draining", "now_s", "wall_offset_ns", "wall_s")

    def __init__(self) -> None:
        self.now_s = 0.0  # the loop's clock as of the last tick, precise enough for timeouts
        self.wall_s = time.time()
        self.wall_offset_ns = 0  # from the monotonic clock to Unix time
        self.date = b""  # the current second in the format of RFC 9110, 5.6.7
        self.draining = False
        self._warned_s = -1.0
        self.set_date(int(self.wall_s))

    def set_date(self, wall_s: int) -> None:
        """Set the Date field's value; called once a second."""
        self.date = formatdate(wall_s, usegmt=True).encode()
        self.wall_offset_ns = time.time_ns() - time.monotonic_ns()

    def warn(self, message: str) -> None:
        """Print at most one line per WARNING_PAUSE_S; the others are dropped."""
        if self.now_s - self._warned_s >= WARNING_PAUSE_S:
            self._warned_s = self.now_s
            say("warning", message)


@dataclass(frozen=True, slots=True)
class Services:
    """`cells`: this proxy's counters; `entries`: the journal of counters and access-log lines."""

    config: Config
    state: ProxyState
    cells: list[int]
    entries: list[AccessRecord]
    ids: RequestIds
    limiter: BandwidthLimiter
    templates: HeadTemplates
    admission: Admission
    unreadable: ProxyPlan  # the plan of a head that could not be parsed
