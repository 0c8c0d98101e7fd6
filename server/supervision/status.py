"""The status of an instance, composed from what its supervisor and its pool know.

Reads a sample request; otherwise pure.  The result's shape is the contract of /health.
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
    """What does not change while an instance runs."""

    artifact: str
    python: str  # version of the model's interpreter
    environment: str
    started_s: float  # Unix time
    socket: str  # where it also listens: a path, @NAME, or nothing
    sample: str  # the text of the sample request, or nothing


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """What the pool knows at one moment."""

    replicas: tuple[Replica, ...]
    wanted: int
    preload_wanted: str
    preload_used: str
    preload_why: str  # why the two differ
    saved_bytes: int  # that replicas share instead of having a copy each
    messages: tuple[str, ...]
    restarts: Mapping[str, int]


def shown(replica: Replica) -> str:
    """A replica's state in the words of the status; one that waits for its first order is loading."""
    if replica.state == State.ABSENT:
        return "dead" if replica.restarts else "loading"
    return "dead" if replica.state == State.LEAVING else str(replica.state)


def sample_text(path: Path | None) -> str:
    """The sample request, where it is text and short enough to be shown."""
    try:
        return path.read_text("utf-8") if path and path.stat().st_size <= MAX_SAMPLE else ""
    except (OSError, UnicodeDecodeError):
        return ""


def shown_sample(artifact: Artifact, text: str) -> tuple[str, str]:
    """How to show the sample request in a command: its path, and its text where it lies in a zip."""
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
    """What /health shows, and what the pages and metrics of the fronts are made from."""
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
    """(why it is not what was asked for, or nothing; the mode to start with)."""
    wanted = config.replicas.preload
    if wanted != "none" and any(gpu is not None for gpu in plan.gpus):
        return (
            f"preload: {wanted} is not used: each replica must see only its own GPU before it imports",
            "none",
        )
    if wanted == "model" and artifact.sample is None:
        return "preload: model is not used: it needs a sample request to prove the fork (sample.json)", "none"
    return "", wanted
