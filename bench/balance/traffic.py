"""Who asks for what, and when: drawn from a seed, so that every contender meets the same requests.

Pure.  `central_queue` is what no policy can beat that does not know the work beforehand: one queue
before all workers, and no way between them.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """How long a worker is busy with a request, in microseconds."""

    mean_us: int = 0  # 0: no work
    kind: str = "exponential"  # or "bimodal": mean_us for nine of ten requests, a hundred times it for one

    @property
    def average_us(self) -> float:
        return self.mean_us * 10.9 if self.kind == "bimodal" else float(self.mean_us)

    def draw(self, source: random.Random) -> int:
        if not self.mean_us:
            return 0
        if self.kind == "bimodal":
            return self.mean_us * (100 if source.random() < 0.1 else 1)
        return max(1, round(source.expovariate(1 / self.mean_us)))


@dataclass(frozen=True)
class Request:
    at_us: int  # after the start
    work_us: int


def poisson(rate: float, seconds: float, work: Work, seed: int) -> list[Request]:
    """`rate` requests per second, at times that know nothing of each other."""
    source, now, requests = random.Random(seed), 0.0, []
    while (now := now + source.expovariate(rate)) < seconds:
        requests.append(Request(round(now * 1e6), work.draw(source)))
    return requests


def central_queue(requests: Sequence[Request], workers: int) -> list[int]:
    """Latencies in microseconds."""
    free, latencies = [0] * workers, []
    for request in requests:
        end = max(request.at_us, heapq.heappop(free)) + request.work_us
        heapq.heappush(free, end)
        latencies.append(end - request.at_us)
    return latencies


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that `part` of all do not exceed; 0 of none."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(part * len(ordered)))]) if ordered else 0.0
