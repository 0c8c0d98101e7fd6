"""One instance as seen by one proxy: its outstanding requests, latency and credits.

Pure arithmetic, the clock is an argument (monotonic ns).  The pool changes the counts in its hot path;
everything else is computed once per tick.

*Load* = outstanding requests x (UNIT // workers): instances of equal load are equally busy, whatever their
size.  *Credits* are the limit of outstanding requests:

    credits = workers + rate x (PREFETCH_NS + way_ns)

The second term keeps a worker from idling for the round trip to the proxy.  More credits would bind requests
to this instance while another one is free.  The result is rounded down; it is rounded up for a queue at least
as long as the number of ready instances.
"""

from __future__ import annotations

import math
from array import array
from typing import Any, Final

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.balancing.outlier_detection import Failure, OutlierRecord
from twofold.loadbalancer.endpoint_record import UP, EndpointRecord

UNIT = 720720  # has every number of workers up to 16 as a divisor
PREFETCH_NS = 2_000_000
MAX_CREDITS = 256
MAX_APART = 1024  # requests set apart; further ones occupy credits, to bound the instance's memory
WEIGHT: Final = 1 / 64  # of the newest request in the latency
KNOWN = 8  # requests served before a latency means anything
RATE_SMOOTHING_NS = 200_000_000
STALENESS_NS = 10_000_000_000  # time in which the latency of an idle instance returns to the pool's mean


class Instance:
    """Mutable. `pool`: the proxy's connections to the instance (UpstreamPool). Latencies in microseconds."""

    __slots__ = (
        "_busy",
        "_failed_sum_us",
        "_lost",
        "_lost_before",
        "_served",
        "_served_sum_us",
        "_ticked_ns",
        "apart",
        "cell",
        "credits",
        "endpoint",
        "failures",
        "full",
        "hot",
        "latency_sum_us",
        "latency_us",
        "limit",
        "load",
        "name",
        "newly",
        "newly_sum_us",
        "outliers",
        "pool",
        "ramp_from_ns",
        "rate",
        "requests",
        "retries",
        "since_ns",
        "state",
        "step",
        "suspected",
        "tried_at_ns",
        "tried_requests",
        "way_ns",
        "workers",
    )

    def __init__(self, record: EndpointRecord, now_ns: int) -> None:
        # From the controller
        self.name = record.name
        self.workers = 0
        self.step = UNIT
        self.load = 0
        self.apart = 0  # outstanding requests that occupy no worker: a body or a response is in transit
        self.since_ns = self.ramp_from_ns = record.since_ns
        self.adopt(record)
        self.pool: Any = None
        self.way_ns = 0  # round-trip time, measured by the proxy as the time of a connect
        # Counted for each request
        self.limit = self.step  # load at which it is not chosen, except for a long queue
        self.full = self.step  # load at which it is never chosen
        self.requests = 0
        self.latency_us = 0.0
        self.latency_sum_us = 0
        self.suspected = False  # the outlier record has an entry that a success clears
        # Counted for each failure
        self.outliers = OutlierRecord()
        self.failures = [0] * len(Failure)
        self.retries = 0  # retries that were sent here; counted by the proxy
        self._lost = 0  # requests that did not succeed
        self._failed_sum_us = 0
        # Computed at each tick
        self.credits = 1
        self.hot = False
        self.rate = 0.0  # successes per second while every worker was busy
        self.newly = self.newly_sum_us = 0  # successes since the previous tick, and their total latency
        self.tried_at_ns = self.tried_requests = 0
        self._served = self._served_sum_us = 0
        self._lost_before = 0
        self._ticked_ns = now_ns
        self._busy = False

    def adopt(self, record: EndpointRecord) -> None:
        """Apply the controller's record."""
        self.endpoint = record
        self.cell = record.cell
        self.state = record.state
        workers = record.workers
        if workers != self.workers:
            working = self.working
            self.workers, self.step = workers, max(1, UNIT // max(1, workers))
            self.load = working * self.step

    @property
    def working(self) -> int:
        return self.load // self.step

    @property
    def outstanding(self) -> int:
        return self.working + self.apart

    def set_apart(self) -> bool:
        """A request waits for its client: free its credit. False if MAX_APART requests are set apart."""
        if self.apart >= MAX_APART:
            return False
        self.load -= self.step
        self.apart += 1
        return True

    def rejoin(self) -> None:
        """Undo set_apart(): the request occupies a credit again."""
        self.apart -= 1
        self.load += self.step

    @property
    def serving(self) -> bool:
        return self.state == UP and not self.outliers.out

    @property
    def known(self) -> bool:
        return self._served >= KNOWN

    # ------------------------------------------------------------------ requests that did not succeed

    def lose(self, latency_us: int) -> None:
        """A request ends without success; `latency_us` is 0 if unknown."""
        self.load -= self.step
        self._lost += 1
        self.latency_sum_us += latency_us
        self._failed_sum_us += latency_us

    def charge(self, penalty_us: float) -> None:
        """Count a failure as slow, so that fast failures do not attract requests."""
        self.latency_us += (penalty_us - self.latency_us) * WEIGHT

    # ------------------------------------------------------------------ ticks

    def measure(self, now_ns: int, typical_us: float) -> None:
        """Update rate and latency from the counts since the last tick."""
        elapsed_ns = now_ns - self._ticked_ns
        served = self.requests - self.outstanding - self._lost
        served_sum = self.latency_sum_us - self._failed_sum_us
        self.newly, self.newly_sum_us = served - self._served, served_sum - self._served_sum_us
        self._served, self._served_sum_us, self._ticked_ns = served, served_sum, now_ns
        lost, self._lost_before = self._lost_before, self._lost
        busy = self.working >= max(1, self.workers)
        if busy and self._busy and elapsed_ns > 0:
            share = elapsed_ns / (elapsed_ns + RATE_SMOOTHING_NS) if self.rate else 1.0
            self.rate += (self.newly * 1e9 / elapsed_ns - self.rate) * share
        self._busy = busy
        if self.newly:
            if not self.known:
                self.latency_us = served_sum / served
            elif self.hot and self._lost == lost:  # it gets few requests, so each counts more
                self.latency_us = (self.latency_us + self.newly_sum_us / self.newly) / 2
        elif not self.hot and typical_us:
            self.latency_us += (typical_us - self.latency_us) * min(1.0, elapsed_ns / STALENESS_NS)

    def grant(self, fixed: int, proxies: int, ramp: float) -> None:
        """Compute this proxy's credits from `fixed`, or from measurements if it is 0.

        credits = 1 + (ceil(total / proxies) - 1) * ramp, with 0 <= ramp <= 1.
        """
        if fixed:
            most = float(fixed)
        elif not self.workers:  # its parallelism is unknown: selection is by least outstanding requests only
            most = float(MAX_CREDITS)
        else:
            ahead = self.rate * (PREFETCH_NS + self.way_ns) / 1e9 if self.rate else self.workers
            most = min(float(MAX_CREDITS), self.workers + ahead)
        usual, full = (-(-part // proxies) for part in (math.floor(most), math.ceil(most)))
        self.allow(*(max(1, int(1 + (part - 1) * ramp)) for part in (full, usual)))

    def allow(self, credits: int, usual: int = 0) -> None:
        """Set the credits; `usual`: the credits without a long queue, if fewer."""
        self.credits = credits
        self.limit, self.full = (usual or credits) * self.step, credits * self.step

    def show(self, words: memoryview) -> None:
        """Write the counts into this proxy's cell for the instance (shared_memory.cell)."""
        record = self.outliers
        block = array("Q", bytes(shared_memory.CELL_SIZE))
        block[shared_memory.OUTSTANDING] = self.outstanding
        block[shared_memory.REQUESTS] = self.requests
        block[shared_memory.FIVEXX] = self.failures[Failure.ANSWER]
        block[shared_memory.CONNECT_ERRORS] = self.failures[Failure.CONNECT] + self.failures[Failure.REFUSED]
        block[shared_memory.LATENCY_US] = int(self.latency_us)
        block[shared_memory.EJECTED_UNTIL] = record.until_ns if record.out else 0
        block[shared_memory.EJECTIONS] = record.ejections
        block[shared_memory.RETRIES] = self.retries
        block[shared_memory.CREDITS] = self.credits
        block[shared_memory.TIMEOUTS] = self.failures[Failure.LATE]
        block[shared_memory.LATENCY_SUM_US] = self.latency_sum_us
        block[shared_memory.BROKEN] = self.failures[Failure.BROKEN]
        words[:] = block
