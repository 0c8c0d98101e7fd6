"""What the load balancer shows of itself to its operator: one JSON object, for the page and the admin.

Pure.  Rates, shares and percentiles are of late (about ten seconds); counts are since the start.
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
    """What cannot be read from the counters."""

    version: str
    started: float  # Unix time
    rate: int  # bit/s of now; 0 is unlimited
    debt: int  # bits
    mbps: float
    maximum: float
    endpoints: Sequence[EndpointRecord]
    certificate_expires: int = 0  # Unix time; 0: there is none, or it cannot be read
    reloads_refused: tuple[int, str] = (0, "")  # how many, and why the last one
    hung: int = 0  # children replaced because they hung
    compiled: bool = False  # see twofold/native/load.py


def state(facts: StatusFacts, recent: SlidingWindow, reading: Reading) -> dict[str, Any]:
    """Everything an operator may want to know, for JSON."""
    cells = reading.cells
    return {
        "version": facts.version,
        "compiled": facts.compiled,
        "children_hung": facts.hung,
        "started": round(facts.started, 3),
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
        "mbps": facts.rate / 1e6,  # of now
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
    of_late = grown(window[1].cells, window[2].cells) if window else [0] * shared_memory.CELLS
    seconds = window[0] if window else 1.0
    answered = statuses(cells)
    return {
        "per_second": round(sum(count for _, count in statuses(of_late)) / seconds, 2),
        "total": sum(count for _, count in answered),
        "inside": cells[shared_memory.INSIDE],
        "waiting": cells[shared_memory.WAITING],
        "by_status": {status: count for status, count in answered if count},
        "refused": {reason: cells[cell] for reason, cell in REFUSALS.items()},
        "refused_per_second": {
            reason: round(of_late[cell] / seconds, 2) for reason, cell in REFUSALS.items()
        },
        "failed_per_second": round(_failed(of_late) / seconds, 2),
        "unauthorised": cells[shared_memory.UNAUTHORISED],
        "retried": cells[shared_memory.RETRIED],
        "retries_denied": cells[shared_memory.RETRY_DENIED],
    }


def statuses(cells: Sequence[int]) -> list[tuple[str, int]]:
    known = [(str(status), cells[cell]) for status, cell in shared_memory.STATUS_CELL.items()]
    return [*known, ("other", cells[shared_memory.OTHER_STATUS])]


def _failed(cells: Sequence[int]) -> int:
    """Answers 5xx that are no refusal of ours."""
    bad = sum(count for status, count in statuses(cells) if status.startswith("5"))
    return max(0, bad - cells[shared_memory.REFUSED_QUEUE] - cells[shared_memory.REFUSED_DOWN])


@dataclass(frozen=True, slots=True)
class _Late:
    """What one instance did of late."""

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
        late = _Late(seconds, grew.get(name, UNSEEN.words), served)
        shown.append(_instance(endpoint, reading.instances.get(name, UNSEEN), late, reading.at_ns))
    return shown


def _instance(endpoint: EndpointRecord, now: Sight, late: _Late, at_ns: int) -> dict[str, Any]:
    served = late.words[shared_memory.REQUESTS]
    known = now.words[shared_memory.REQUESTS] > 0  # or its latency is a guess of the proxies
    latency_us = late.words[shared_memory.LATENCY_SUM_US] / served if served else now.latency_us * known
    failed = sum(late.words[cell] for cell in FAILURES.values())
    return {
        "name": endpoint.name,
        "state": shown_state(endpoint, now, at_ns),
        "why": endpoint.why,
        "source": endpoint.source,
        "workers": endpoint.workers,
        "outstanding": now.words[shared_memory.OUTSTANDING],
        "credits": now.words[shared_memory.CREDITS],
        "per_second": round(served / late.seconds, 2),
        "share": round(served / late.all, 4) if late.all else 0.0,
        "latency_ms": round(latency_us / 1e3, 3) if latency_us else None,
        "requests": now.words[shared_memory.REQUESTS],
        "failures": {kind: now.words[cell] for kind, cell in FAILURES.items()},
        "failed_per_second": round(failed / late.seconds, 2),
        "retries": now.words[shared_memory.RETRIES],
        "ejections": now.words[shared_memory.EJECTIONS],
        "ejected_s": round(max(0, now.ejected_until - at_ns) / 1e9, 1),
    }


def shown_state(endpoint: EndpointRecord, sight: Sight, now: int) -> str:
    """As published; or ejected, when a proxy has had enough of one that answers its probes."""
    ejected = endpoint.state == "up" and sight.ejected_until > now
    return "ejected" if ejected else endpoint.state


def history(recent: SlidingWindow) -> dict[str, list[float | None]]:
    """The last minute, a column for each figure, two points a second."""
    columns = zip(*(asdict(point).values() for point in recent.points), strict=True)
    names = ("received", "sent", "limit", "requests", "p50", "p99", "refused")
    rounded = [[None if each is None else round(each, 3) for each in column] for column in columns]
    return dict(zip(names, rounded or [[] for _ in names], strict=True))
