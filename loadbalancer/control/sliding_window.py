"""Recent rates, percentiles and a minute of history, from readings of the counters.

Pure; the clock comes with the readings (monotonic ns).  A counter that decreases was reset with its
process: that step counts as zero.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from twofold.loadbalancer import shared_memory
from twofold.telemetry import histograms
from twofold.telemetry.counters import totals

STEP_S = 0.5  # time between readings
POINTS = 120  # of the history
WINDOW = 20  # readings over which percentiles, shares and utilisation are taken: 10 s
BRIEF = 4  # readings over which rates are taken
MEGABIT = 1e6


@dataclass(frozen=True, slots=True)
class Sight:
    """The counts of one instance, summed over all proxies."""

    words: tuple[int, ...]  # sums, in the layout of a cell
    latency_us: int = 0  # mean over the proxies that serve it now
    ejected_until_ns: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    at_ns: int
    cells: list[int]  # counters, summed over all proxies
    instances: dict[str, Sight]


def read(shared: mmap.mmap, cells: Mapping[str, int], now_ns: int) -> Reading:
    """Read the counters of the proxies and the instances; `cells`: cell numbers by instance name."""
    blocks = shared_memory.read_counters(shared)
    known = next(iter(cells.values()), 0)
    # A proxy without a connection yet has written its credits already.
    active = [
        proxy
        for proxy, block in enumerate(blocks)
        if block[shared_memory.ACCEPTED] or shared_memory.cell(shared, proxy, known)[shared_memory.CREDITS]
    ]
    return Reading(
        now_ns, totals(blocks), {name: _sight(shared, active, cell) for name, cell in cells.items()}
    )


def _sight(shared: mmap.mmap, proxies: list[int], instance: int) -> Sight:
    rows = [shared_memory.cell(shared, proxy, instance).tolist() for proxy in proxies]
    if not rows:
        return Sight((0,) * shared_memory.CELL_WORDS)
    # The cell of an ended proxy has no credits, but still the last latency.
    latencies = [
        row[shared_memory.LATENCY_US]
        for row in rows
        if row[shared_memory.CREDITS] and row[shared_memory.LATENCY_US]
    ]
    return Sight(
        words=tuple(totals(rows)),
        latency_us=sum(latencies) // len(latencies) if latencies else 0,
        ejected_until_ns=max(row[shared_memory.EJECTED_UNTIL] for row in rows),
    )


def percentile(counts: Sequence[int], share: float) -> float | None:
    """Microseconds below which `share` (0 to 1) of a histogram's durations lie, within bucket precision."""
    wanted = sum(counts) * share
    if not wanted:
        return None
    for bucket, count in enumerate(counts):
        if count and wanted <= count:
            low, high = (2 ** (bucket - 1), 2**bucket) if bucket else (0, 1)
            return low + (high - low) * wanted / count
        wanted -= count
    return float(2 ** (len(counts) - 1))


def grown(before: Sequence[int], after: Sequence[int]) -> list[int]:
    return [max(0, new - old) for old, new in zip(before, after, strict=True)]


@dataclass(slots=True)
class Point:
    """One step of the history. Rates in Mbps and 1/s, latencies in ms; None: no responses."""

    received: float
    sent: float
    limit: float
    requests: float
    p50: float | None
    p99: float | None
    refused: float


@dataclass(slots=True)
class SlidingWindow:
    readings: deque[Reading] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=POINTS))

    def hear(self, reading: Reading, rate: int) -> None:
        """Add a reading; `rate` is the limit in bit/s, 0 is unlimited."""
        if self.readings:
            self._add(self.readings[-1], reading, rate / MEGABIT)
        self.readings.append(reading)

    def _add(self, last: Reading, reading: Reading, limit: float) -> None:
        seconds = max(reading.at_ns - last.at_ns, 1) / 1e9
        new = grown(last.cells, reading.cells)
        mbits = 8 / MEGABIT / seconds
        recent = grown(self.readings[max(0, len(self.readings) - BRIEF)].cells, reading.cells)
        p50, p99 = (
            percentile(histograms.counts(recent, shared_memory.LATENCY), share) for share in (0.5, 0.99)
        )
        refused = sum(new[cell] for cell in REFUSALS.values())
        self.points.append(Point(
            new[shared_memory.BYTES_IN] * mbits, new[shared_memory.BYTES_OUT] * mbits, limit,
            _answered(new) / seconds,
            None if p50 is None else p50 / 1e3, None if p99 is None else p99 / 1e3, refused / seconds,
        ))  # fmt: skip
        self._spread()

    def _spread(self) -> None:
        """Move bytes above the limit of a step to the step before: they are counted when a request ends."""
        points = list(self.points)
        for point, before in zip(points[:0:-1], points[-2::-1], strict=True):
            both = point.received + point.sent
            if not point.limit or both <= point.limit:
                return
            share = point.limit / both
            before.received += point.received * (1 - share)
            before.sent += point.sent * (1 - share)
            point.received *= share
            point.sent *= share

    # ------------------------------------------------------------------ recent figures

    def window(self, readings: int = WINDOW) -> tuple[float, Reading, Reading] | None:
        """(seconds, first, last) of the last `readings` steps; None without a step."""
        if len(self.readings) < 2:
            return None
        first, last = self.readings[max(0, len(self.readings) - 1 - readings)], self.readings[-1]
        return max(last.at_ns - first.at_ns, 1) / 1e9, first, last

    def mbps(self) -> tuple[float, float]:
        """(received, sent): the mean over the last BRIEF points."""
        latest = list(self.points)[-BRIEF:]
        many = max(1, len(latest))
        return sum(point.received for point in latest) / many, sum(point.sent for point in latest) / many

    def utilisation(self) -> float:
        """The used share of the bandwidth, 0 to 1; 0 without a limit."""
        latest = [point for point in list(self.points)[-WINDOW:] if point.limit]
        possible = sum(point.limit for point in latest)
        return min(1.0, sum(point.received + point.sent for point in latest) / possible) if possible else 0.0

    def percentiles(self, start: int) -> tuple[float | None, float | None]:
        """p50 and p99 in milliseconds of the histogram that begins at the cell `start`."""
        window = self.window()
        if window is None:
            return None, None
        counts = histograms.counts(grown(window[1].cells, window[2].cells), start)
        low, high = percentile(counts, 0.5), percentile(counts, 0.99)
        return (None, None) if low is None or high is None else (low / 1e3, high / 1e3)


REFUSALS = {
    "bandwidth": shared_memory.REFUSED_BANDWIDTH,
    "rate": shared_memory.REFUSED_RATE,
    "caller": shared_memory.REFUSED_CALLER,
    "queue": shared_memory.REFUSED_QUEUE,
    "down": shared_memory.REFUSED_DOWN,
}


def _answered(cells: Sequence[int]) -> int:
    """Requests answered, whatever the status."""
    return sum(cells[: shared_memory.OTHER_STATUS + 1])
