"""The status of the instance, as its supervisor publishes it in shared memory and fronts read it.

Touches only the mapping that it is handed.  Written by the supervisor alone (see replica/slots.py).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from typing import Any

from twofold.server.replica import slots
from twofold.shm.json_page import JsonPage


def _page(memory: mmap.mmap) -> JsonPage:
    return JsonPage(memory, slots.STATUS_SEQUENCE, slots.STATUS_OFFSET, slots.STATUS_SIZE)


def publish(memory: mmap.mmap, status: Mapping[str, Any]) -> None:
    """Show `status` to the fronts. Texts are cut where it has no room; ValueError if that does not help."""
    page = _page(memory)
    page.publish_text(_fitted(status, page.limit))


def read(memory: mmap.mmap) -> dict[str, Any]:
    """The status as last published, or that of an instance that has not published yet."""
    return _page(memory).read() or {"state": "starting", "messages": [], "replicas": [], "restarts": {}}


def is_ready(status: Mapping[str, Any]) -> bool:
    """Whether the instance can answer predict requests, by its own account."""
    return status.get("state") in ("ready", "degraded")


def _fitted(status: Mapping[str, Any], limit: int) -> bytes:
    """JSON of the status in at most `limit` bytes; the longest texts are cut, the facts stay."""
    payload = _compact(status)
    for width in (400, 100, 20, 0):
        if len(payload) <= limit:
            return payload
        shortened = dict(status)
        shortened["messages"] = [text[:width] for text in list(status.get("messages", ()))[-8:]]
        shortened["replicas"] = [
            {**replica, "reason": str(replica.get("reason", ""))[:width]}
            for replica in status.get("replicas", ())
        ]
        payload = _compact(shortened)
    if len(payload) > limit:
        raise ValueError(f"the status needs {len(payload)} bytes even without its texts")
    return payload


def _compact(status: Mapping[str, Any]) -> bytes:
    return json.dumps(status, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
