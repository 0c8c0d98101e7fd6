"""One instance as one proxy sees it: what it has in hand, how fast it is, how much it may be given.

Pure arithmetic, the clock is an argument (monotonic ns).  The pool changes the counts in its hot
path; everything else is settled once per tick.

*Load* is the requests in hand, each counted as UNIT // workers: equal loads are equally busy
instances, whatever their size.  *Credits* are how many requests it may have in hand at once: one for
each worker, and what it completes in PREFETCH_NS, so that no worker waits for the way to the proxy
and back; any more would be bound to this instance while another one may become free.  Where that is
no whole number, the last credit is for a queue so long that each instance gets one of it soon.
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
MAX_APART = 1024  # and more take credits: an instance has memory for so many
WEIGHT: Final = 1 / 64  # of the newest request in the latency
KNOWN = 8  # requests served before a latency means anything
RATE_SMOOTHING_NS = 200_000_000
STALENESS_NS = 10_000_000_000  # over which the latency of an instance without traffic becomes typical again


class Instance:
    """Mutable; `pool` holds the proxy's connections to it. Latencies in microseconds."""

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
        self.apart = 0  # requests here that keep no worker busy: a body or an answer is on its way
        self.since_ns = self.ramp_from_ns = record.since_ns
        self.adopt(record)
        self.pool: Any = None
        self.way_ns = 0  # to it and back, where that is long; set by the proxy from the time of a connect
        # Counted for each request
        self.limit = self.step  # the load at which it takes no more, but from a long queue,
        self.full = self.step  # and then no more either
        self.requests = 0
        self.latency_us = 0.0
        self.latency_sum_us = 0
        self.suspected = False  # there is something in the record that a success ends
        # Counted for each failure
        self.outliers = OutlierRecord()
        self.failures = [0] * len(Failure)
        self.retries = 0  # second attempts that came here; counted by the proxy
        self._lost = 0  # requests that were no success
        self._failed_sum_us = 0
        # Settled at each tick
        self.credits = 1
        self.hot = False
        self.rate = 0.0  # successes per second while every worker was busy
        self.newly = self.newly_sum_us = 0  # successes since the tick before, and their latencies
        self.tried_at_ns = self.tried_requests = 0
        self._served = self._served_sum_us = 0
        self._lost_before = 0
        self._ticked_ns = now_ns
        self._busy = False

    def adopt(self, record: EndpointRecord) -> None:
        """Take over what the controller says of it now."""
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
        """One of its requests waits for a client, to send or to take: no reason to give it no other."""
        if self.apart >= MAX_APART:
            return False
        self.load -= self.step
        self.apart += 1
        return True

    def rejoin(self) -> None:
        """It counts again."""
        self.apart -= 1
        self.load += self.step

    @property
    def serving(self) -> bool:
        return self.state == UP and not self.outliers.out

    @property
    def known(self) -> bool:
        return self._served >= KNOWN

    # ------------------------------------------------------------------ requests that were no success

    def lose(self, latency_us: int) -> None:
        """A request leaves without a success; 0 when nobody knows how long it took."""
        self.load -= self.step
        self._lost += 1
        self.latency_sum_us += latency_us
        self._failed_sum_us += latency_us

    def charge(self, penalty_us: float) -> None:
        """Count a failure as slow, that a quick one may attract nobody."""
        self.latency_us += (penalty_us - self.latency_us) * WEIGHT

    # ------------------------------------------------------------------ ticks

    def measure(self, now_ns: int, typical_us: float) -> None:
        """See what happened since the last tick."""
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
            elif self.hot and self._lost == lost:  # its few requests must suffice to clear it
                self.latency_us = (self.latency_us + self.newly_sum_us / self.newly) / 2
        elif not self.hot and typical_us:
            self.latency_us += (typical_us - self.latency_us) * min(1.0, elapsed_ns / STALENESS_NS)

    def grant(self, fixed: int, proxies: int, ramp: float) -> None:
        """Settle the credits: `fixed` ones if not 0, this proxy's part of them, 0 < ramp <= 1 of those."""
        if fixed:
            most = float(fixed)
        elif not self.workers:  # nobody knows how much it does at once: only the fewest in hand decide
            most = float(MAX_CREDITS)
        else:
            ahead = self.rate * (PREFETCH_NS + self.way_ns) / 1e9 if self.rate else self.workers
            most = min(float(MAX_CREDITS), self.workers + ahead)
        usual, full = (-(-part // proxies) for part in (math.floor(most), math.ceil(most)))
        self.allow(*(max(1, int(1 + (part - 1) * ramp)) for part in (full, usual)))

    def allow(self, credits: int, usual: int = 0) -> None:
        """So many requests at once; as a rule only the usual ones, if that is less."""
        self.credits = credits
        self.limit, self.full = (usual or credits) * self.step, credits * self.step

    def show(self, words: memoryview) -> None:
        """Write the figures into the cell that this proxy has for it (shared_memory.cell)."""
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
