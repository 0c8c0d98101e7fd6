"""The status of the instance, composed: what the supervisor publishes of itself and its replicas.

Pure: reads the supervisor's and the pool's state, decides the instance's own state from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofold.server.artifact.artifact import SAMPLE, Artifact
from twofold.server.config import Config
from twofold.server.machine.capacity import CapacityPlan
from twofold.server.supervision.replica_state import Replica, State

if TYPE_CHECKING:
    from twofold.server.supervision.supervisor import Supervisor

MAX_SAMPLE = 4096  # bytes of a sample request that are shown to those who want to try the model


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


def sample_facts(artifact: Artifact, text: str) -> dict[str, str]:
    """How to show the sample request in a command: its path, or its text where it lies in a zip."""
    if artifact.archive is not None and artifact.holds_sample():
        return {"sample": SAMPLE, "sample_text": text}
    return {"sample": str(artifact.sample or ""), "sample_text": ""}


def state(supervisor: Supervisor) -> str:
    """starting, ready, degraded, failed or draining."""
    pool = supervisor.pool
    ready = pool.ready_count()
    if supervisor.stop.requested_at:
        return "draining"
    if ready >= pool.wanted:
        return "ready"
    if not supervisor.announced:
        return "starting"
    return "degraded" if ready else "failed"


def compose_status(supervisor: Supervisor) -> dict[str, Any]:
    """What is published: see instance_status."""
    pool, config = supervisor.pool, supervisor.config
    return {
        "state": state(supervisor),
        "artifact": supervisor.artifact.name,
        "python": supervisor.environment.version,
        "environment": supervisor.environment.name,
        "started": supervisor.started,
        "socket": supervisor.listeners.local_name if supervisor.listeners else "",
        "sample": supervisor.sample_text,
        "preload": {
            "wanted": config.replicas.preload,
            "used": pool.facts.preload,
            "why": pool.fallback,
            "memory_saved_mb": round(pool.memory_saved / 1e6, 1),
        },
        "messages": pool.messages[-8:],
        "replicas": [
            {
                "index": replica.index,
                "pid": replica.pid,
                "state": shown(replica),
                "restarts": replica.restarts,
                "reason": replica.reason,
                "load_seconds": round(replica.load_seconds, 3),
                "memory_mb": round(replica.memory / 1e6, 1),
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
