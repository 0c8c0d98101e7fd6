"""What the supervisor tells the world about the instance: the status board, composed.

Pure: reads the supervisor's and the pool's state, decides the instance's own state from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.artifact import Artifact
from server.capacity import Plan
from server.child import State
from server.config import Config

if TYPE_CHECKING:
    from server.supervisor import Supervisor

SHOWN = {State.ABSENT: "dead", State.LEAVING: "dead"}


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


def compose(supervisor: Supervisor) -> dict[str, Any]:
    pool, config = supervisor.pool, supervisor.config
    return {
        "state": state(supervisor),
        "artifact": supervisor.artifact.name,
        "python": supervisor.environment.version,
        "environment": supervisor.environment.name,
        "started": supervisor.started,
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
                "state": SHOWN.get(replica.state, str(replica.state)),
                "restarts": replica.restarts,
                "reason": replica.reason,
                "load_seconds": round(replica.load_seconds, 3),
                "memory_mb": round(replica.memory / 1e6, 1),
            }
            for replica in pool.replicas
        ],
        "restarts": pool.restarts,
    }


def choose_preload(config: Config, plan: Plan, artifact: Artifact) -> tuple[str, str]:
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
