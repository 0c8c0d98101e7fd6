"""The status of an instance, composed from the state of its supervisor and its pool.

Reads a sample request; otherwise pure.  The fields of the result are the contract of /health.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twofold.server.artifact.artifact import SAMPLE, Artifact
from twofold.server.config import Config
from twofold.server.machine.capacity import CapacityPlan
from twofold.server.supervision.replica_state import Replica, State
from twofold.server.telemetry.instance_status import InstanceStatus

MAX_SAMPLE = 4096  # bytes of a sample request that are shown on the page to try the model


@dataclass(frozen=True, slots=True)
class InstanceIdentity:
    """The constant facts of an instance."""

    artifact: str
    python: str  # version of the model's interpreter
    environment: str
    started_s: float  # Unix time
    socket: str  # the local socket: a path, @NAME, or empty
    sample: str  # the text of the sample request, or empty


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The state of the pool at one moment."""

    replicas: tuple[Replica, ...]
    wanted: int
    preload_wanted: str
    preload_used: str
    preload_why: str  # why `wanted` and `used` differ
    saved_bytes: int  # memory that replicas share instead of copying
    messages: tuple[str, ...]
    restarts: Mapping[str, int]


def shown(replica: Replica) -> str:
    """A replica's state as the status shows it; `loading` before its first order."""
    if replica.state == State.ABSENT:
        return "dead" if replica.restarts else "loading"
    return "dead" if replica.state == State.LEAVING else str(replica.state)


def sample_text(path: Path | None) -> str:
    """The text of the sample request; empty if it is longer than MAX_SAMPLE, not UTF-8 or unreadable."""
    try:
        return path.read_text("utf-8") if path and path.stat().st_size <= MAX_SAMPLE else ""
    except (OSError, UnicodeDecodeError):
        return ""


def shown_sample(artifact: Artifact, text: str) -> tuple[str, str]:
    """(path, text) of the sample request for a command line; the text only if the file is in a zip."""
    if artifact.archive is not None and artifact.holds_sample():
        return SAMPLE, text
    return str(artifact.sample or ""), ""


def instance_state(pool: PoolSnapshot, stopping: bool, announced: bool) -> str:
    """starting, ready, degraded, failed or draining."""
    ready = sum(replica.state == State.READY for replica in pool.replicas)
    if stopping:
        return "draining"
    if ready >= pool.wanted:
        return "ready"
    if not announced:
        return "starting"
    return "degraded" if ready else "failed"


def compose(identity: InstanceIdentity, pool: PoolSnapshot, state: str) -> InstanceStatus:
    """The status that /health returns, and that pages and metrics of the fronts are made from."""
    return {
        "state": state,
        "artifact": identity.artifact,
        "python": identity.python,
        "environment": identity.environment,
        "started": identity.started_s,
        "socket": identity.socket,
        "sample": identity.sample,
        "preload": {
            "wanted": pool.preload_wanted,
            "used": pool.preload_used,
            "why": pool.preload_why,
            "memory_saved_mb": round(pool.saved_bytes / 1e6, 1),
        },
        "messages": list(pool.messages),
        "replicas": [
            {
                "index": replica.index,
                "pid": replica.pid,
                "state": shown(replica),
                "restarts": replica.restarts,
                "reason": replica.reason,
                "load_seconds": round(replica.load_s, 3),
                "memory_mb": round(replica.memory_bytes / 1e6, 1),
            }
            for replica in pool.replicas
        ],
        "restarts": pool.restarts,
    }


def choose_preload(config: Config, plan: CapacityPlan, artifact: Artifact) -> tuple[str, str]:
    """(why the mode differs from the setting, or empty; the mode to start with)."""
    wanted = config.replicas.preload
    if wanted != "none" and any(gpu is not None for gpu in plan.gpus):
        return (
            f"preload: {wanted} is not used: each replica must see only its own GPU before it imports",
            "none",
        )
    if wanted == "model" and artifact.sample is None:
        return "preload: model is not used: it needs a sample request to prove the fork (sample.json)", "none"
    return "", wanted
