"""The status of the instance in shared memory: published by the supervisor, read by the fronts.

Touches only the mapping of its caller.  The supervisor is the only writer (see replica/slots.py).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from twofold.server.replica import slots
from twofold.shm.json_page import JsonPage


class ReplicaStatus(TypedDict):
    """The status of one replica."""

    index: int
    pid: int
    state: str  # loading, ready, spare, backoff or dead
    restarts: int
    reason: str  # of the last end
    load_seconds: float
    memory_mb: float  # private memory, in 10^6 bytes


class PreloadStatus(TypedDict):
    """The preload mode of the setting, and the one in use."""

    wanted: str
    used: str
    why: str  # why `wanted` and `used` differ
    memory_saved_mb: float  # in 10^6 bytes


class InstanceStatus(TypedDict, total=False):
    """The published status. Before the first one there are only state, messages, replicas and restarts."""

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
    """Publish `status` to the fronts. Texts are cut to fit; raises ValueError if it is still too large."""
    page = _page(memory)
    page.publish_text(_fitted(status, page.limit))


def read(memory: mmap.mmap) -> InstanceStatus:
    """The last published status, or that of an instance that has not published yet."""
    published = _page(memory).read()
    if not published:
        return {"state": "starting", "messages": [], "replicas": [], "restarts": {}}
    return cast(InstanceStatus, published)


def is_ready(status: InstanceStatus) -> bool:
    """Whether the instance can answer predict requests, according to its status."""
    return status.get("state") in ("ready", "degraded")


def _fitted(status: InstanceStatus, limit: int) -> bytes:
    """JSON of the status in at most `limit` bytes; only messages and reasons are cut. Raises ValueError."""
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
