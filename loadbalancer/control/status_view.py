"""The status of the load balancer as one JSON object, for the page and the admin API.

Pure.  Rates, shares and percentiles cover the last ten seconds; counts are since the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.control.sliding_window import REFUSALS, Reading, Sight, SlidingWindow, grown
from twofold.loadbalancer.endpoint_record import EndpointRecord

FAILURES = {
    "answer": shared_memory.FIVEXX,
    "connect": shared_memory.CONNECT_ERRORS,
    "late": shared_memory.TIMEOUTS,
    "broken": shared_memory.BROKEN,
}
UNSEEN = Sight((0,) * shared_memory.CELL_WORDS)


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """The part of the status that is not in the counters."""

    version: str
    started_unix_s: float
    rate: int  # current bit/s; 0 is unlimited
    debt: int  # bits
    mbps: float
    maximum: float
    endpoints: Sequence[EndpointRecord]
    certificate_expires: int = 0  # Unix time in seconds; 0: there is no readable certificate
    reloads_refused: tuple[int, str] = (0, "")  # their number, and the last reason
    hung: int = 0  # number of children that were replaced because they hung
    compiled: bool = False  # see twofold/native/load.py


def state(facts: StatusFacts, recent: SlidingWindow, reading: Reading) -> dict[str, Any]:
    """The complete status, for JSON."""
    cells = reading.cells
    return {
        "version": facts.version,
        "compiled": facts.compiled,
        "children_hung": facts.hung,
        "started": round(facts.started_unix_s, 3),
        "reloads_refused": {"times": facts.reloads_refused[0], "why": facts.reloads_refused[1]},
        "bandwidth": _bandwidth(facts, recent, cells),
        "requests": _requests(recent, cells),
        "latency_ms": _pair(recent.percentiles(shared_memory.LATENCY)),
        "upstream_ms": _pair(recent.percentiles(shared_memory.UPSTREAM)),
        "throttled_ms": _pair(recent.percentiles(shared_memory.THROTTLE)),
        "queued_ms": _pair(recent.percentiles(shared_memory.QUEUE)),
        "connections": {
            "open": cells[shared_memory.OPEN_CONNECTIONS], "accepted": cells[shared_memory.ACCEPTED],
            "upstream_open": cells[shared_memory.UPSTREAM_OPEN],
        },
        "instances": instances(facts.endpoints, recent, reading),
    }  # fmt: skip


def _pair(found: tuple[float | None, float | None]) -> dict[str, float | None]:
    low, high = (None if each is None else round(each, 3) for each in found)
    return {"p50": low, "p99": high}


def _bandwidth(facts: StatusFacts, recent: SlidingWindow, cells: Sequence[int]) -> dict[str, Any]:
    received, sent = recent.mbps()
    return {
        "mbps": facts.rate / 1e6,
        "minimum_mbps": facts.mbps,
        "maximum_mbps": facts.maximum or facts.mbps,
        "in_mbps": round(received, 4),
        "out_mbps": round(sent, 4),
        "utilisation": round(recent.utilisation(), 4),
        "debt_bytes": facts.debt // 8,
        "waiting": cells[shared_memory.THROTTLED],
        "in_bytes": cells[shared_memory.BYTES_IN],
        "out_bytes": cells[shared_memory.BYTES_OUT],
    }


def _requests(recent: SlidingWindow, cells: Sequence[int]) -> dict[str, Any]:
    window = recent.window()
    growth = grown(window[1].cells, window[2].cells) if window else [0] * shared_memory.CELLS
    seconds = window[0] if window else 1.0
    answered = statuses(cells)
    return {
        "per_second": round(sum(count for _, count in statuses(growth)) / seconds, 2),
        "total": sum(count for _, count in answered),
        "inside": cells[shared_memory.INSIDE],
        "waiting": cells[shared_memory.WAITING],
        "by_status": {status: count for status, count in answered if count},
        "refused": {reason: cells[cell] for reason, cell in REFUSALS.items()},
        "refused_per_second": {reason: round(growth[cell] / seconds, 2) for reason, cell in REFUSALS.items()},
        "failed_per_second": round(_failed(growth) / seconds, 2),
        "unauthorised": cells[shared_memory.UNAUTHORISED],
        "retried": cells[shared_memory.RETRIED],
        "retries_denied": cells[shared_memory.RETRY_DENIED],
    }


def statuses(cells: Sequence[int]) -> list[tuple[str, int]]:
    known = [(str(status), cells[cell]) for status, cell in shared_memory.STATUS_CELL.items()]
    return [*known, ("other", cells[shared_memory.OTHER_STATUS])]


def _failed(cells: Sequence[int]) -> int:
    """The number of 5xx responses, without the load balancer's own refusals."""
    bad = sum(count for status, count in statuses(cells) if status.startswith("5"))
    return max(0, bad - cells[shared_memory.REFUSED_QUEUE] - cells[shared_memory.REFUSED_DOWN])


@dataclass(frozen=True, slots=True)
class _RecentCounts:
    """The growth of one instance's counts over the window."""

    seconds: float
    words: Sequence[int]
    all: int  # requests of the whole pool


def instances(
    endpoints: Iterable[EndpointRecord], recent: SlidingWindow, reading: Reading
) -> list[dict[str, Any]]:
    window = recent.window()
    grew: dict[str, Sequence[int]] = {}
    for name, now in reading.instances.items():
        before = window[1].instances.get(name, UNSEEN) if window else now
        grew[name] = grown(before.words, now.words)
    served = sum(words[shared_memory.REQUESTS] for words in grew.values())
    seconds = window[0] if window else 1.0
    shown = []
    for endpoint in endpoints:
        name = endpoint.name
        counts = _RecentCounts(seconds, grew.get(name, UNSEEN.words), served)
        shown.append(_instance(endpoint, reading.instances.get(name, UNSEEN), counts, reading.at_ns))
    return shown


def _instance(endpoint: EndpointRecord, now: Sight, counts: _RecentCounts, at_ns: int) -> dict[str, Any]:
    served = counts.words[shared_memory.REQUESTS]
    known = now.words[shared_memory.REQUESTS] > 0  # otherwise its latency is an estimate of the proxies
    latency_us = counts.words[shared_memory.LATENCY_SUM_US] / served if served else now.latency_us * known
    failed = sum(counts.words[cell] for cell in FAILURES.values())
    return {
        "name": endpoint.name,
        "state": shown_state(endpoint, now, at_ns),
        "why": endpoint.why,
        "source": endpoint.source,
        "workers": endpoint.workers,
        "outstanding": now.words[shared_memory.OUTSTANDING],
        "credits": now.words[shared_memory.CREDITS],
        "per_second": round(served / counts.seconds, 2),
        "share": round(served / counts.all, 4) if counts.all else 0.0,
        "latency_ms": round(latency_us / 1e3, 3) if latency_us else None,
        "requests": now.words[shared_memory.REQUESTS],
        "failures": {kind: now.words[cell] for kind, cell in FAILURES.items()},
        "failed_per_second": round(failed / counts.seconds, 2),
        "retries": now.words[shared_memory.RETRIES],
        "ejections": now.words[shared_memory.EJECTIONS],
        "ejected_s": round(max(0, now.ejected_until_ns - at_ns) / 1e9, 1),
    }


def shown_state(endpoint: EndpointRecord, sight: Sight, now_ns: int) -> str:
    """The published state, or "ejected" if a proxy ejects an endpoint that is up."""
    ejected = endpoint.state == "up" and sight.ejected_until_ns > now_ns
    return "ejected" if ejected else endpoint.state


def history(recent: SlidingWindow) -> dict[str, list[float | None]]:
    """The last minute: one column per figure, two points a second."""
    columns = zip(*(asdict(point).values() for point in recent.points), strict=True)
    names = ("received", "sent", "limit", "requests", "p50", "p99", "refused")
    rounded = [[None if each is None else round(each, 3) for each in column] for column in columns]
    return dict(zip(names, rounded or [[] for _ in names], strict=True))
