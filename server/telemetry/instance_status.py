"""The status of the instance, as its supervisor publishes it in shared memory and fronts read it.

Touches only the mapping that it is handed.  Written by the supervisor alone (see replica/slots.py).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from twofold.server.replica import slots
from twofold.shm.json_page import JsonPage


class ReplicaStatus(TypedDict):
    index: int
    pid: int
    state: str  # loading, ready, spare, backoff or dead
    restarts: int
    reason: str  # of its last end
    load_seconds: float
    memory_mb: float  # private memory, in 10^6 bytes


class PreloadStatus(TypedDict):
    wanted: str
    used: str
    why: str  # why the two differ
    memory_saved_mb: float


class InstanceStatus(TypedDict, total=False):
    """Until the first one is published there are only state, messages, replicas and restarts."""

    state: str  # starting, ready, degraded, failed or draining
    artifact: str
    python: str
    environment: str
    started: float  # Unix time, in seconds
    socket: str
    sample: str
    preload: PreloadStatus
    messages: Sequence[str]
    replicas: Sequence[ReplicaStatus]
    restarts: Mapping[str, int]  # by the reason of the end, or by the role of a process


def _page(memory: mmap.mmap) -> JsonPage:
    return JsonPage(memory, slots.STATUS_SEQUENCE, slots.STATUS_OFFSET, slots.STATUS_SIZE)


def publish(memory: mmap.mmap, status: InstanceStatus) -> None:
    """Show `status` to the fronts. Texts are cut where it has no room; ValueError if that does not help."""
    page = _page(memory)
    page.publish_text(_fitted(status, page.limit))


def read(memory: mmap.mmap) -> InstanceStatus:
    """The status as last published, or that of an instance that has not published yet."""
    published = _page(memory).read()
    if not published:
        return {"state": "starting", "messages": [], "replicas": [], "restarts": {}}
    return cast(InstanceStatus, published)


def is_ready(status: InstanceStatus) -> bool:
    """Whether the instance can answer predict requests, by its own account."""
    return status.get("state") in ("ready", "degraded")


def _fitted(status: InstanceStatus, limit: int) -> bytes:
    """JSON of the status in at most `limit` bytes; the longest texts are cut, the facts stay."""
    payload = _compact(status)
    for width in (400, 100, 20, 0):
        if len(payload) <= limit:
            return payload
        shortened = status.copy()
        shortened["messages"] = [text[:width] for text in list(status.get("messages", ()))[-8:]]
        shortened["replicas"] = [
            {**replica, "reason": replica["reason"][:width]} for replica in status.get("replicas", ())
        ]
        payload = _compact(shortened)
    if len(payload) > limit:
        raise ValueError(f"the status needs {len(payload)} bytes even without its texts")
    return payload


def _compact(status: InstanceStatus) -> bytes:
    return json.dumps(status, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
