"""The status of an instance: its state from its replicas' states, and the keys that users rely on."""

from __future__ import annotations

import json

import pytest

from twofold.server.supervision import status
from twofold.server.supervision.replica_state import Replica, State
from twofold.server.supervision.status import InstanceIdentity, PoolSnapshot

IDENTITY = InstanceIdentity("iris", "3.10.13", "default", 1700000000.5, "@name", "[1]")


def pool(*states: State, wanted: int = 2) -> PoolSnapshot:
    replicas = tuple(Replica(index, state=state, load_s=1.23456) for index, state in enumerate(states))
    return PoolSnapshot(
        replicas,
        wanted,
        "model",
        "none",
        "it needs a sample",
        1_250_000,
        ("careful",),
        {"killed by SIGKILL": 1},
    )


@pytest.mark.parametrize(
    ("states", "stopping", "announced", "said"),
    [
        ((State.LOADING, State.ABSENT), False, False, "starting"),
        ((State.READY, State.LOADING), False, False, "starting"),
        ((State.READY, State.READY), False, False, "ready"),
        ((State.READY, State.READY, State.SPARE), False, True, "ready"),
        ((State.READY, State.BACKOFF), False, True, "degraded"),
        ((State.BACKOFF, State.LOADING), False, True, "failed"),
        ((State.READY, State.READY), True, True, "draining"),
    ],
)
def test_the_state_of_an_instance(
    states: tuple[State, ...], stopping: bool, announced: bool, said: str
) -> None:
    assert status.instance_state(pool(*states), stopping, announced) == said


def test_the_keys_of_health_are_a_contract() -> None:
    shown = status.compose(IDENTITY, pool(State.READY, State.LEAVING), "degraded")
    assert json.loads(json.dumps(shown)) == {
        "state": "degraded", "artifact": "iris", "python": "3.10.13", "environment": "default",
        "started": 1700000000.5, "socket": "@name", "sample": "[1]",
        "preload": {
            "wanted": "model", "used": "none", "why": "it needs a sample", "memory_saved_mb": 1.2,
        },
        "messages": ["careful"],
        "replicas": [
            {"index": 0, "pid": 0, "state": "ready", "restarts": 0, "reason": "", "load_seconds": 1.235,
             "memory_mb": 0.0},
            {"index": 1, "pid": 0, "state": "dead", "restarts": 0, "reason": "", "load_seconds": 1.235,
             "memory_mb": 0.0},
        ],
        "restarts": {"killed by SIGKILL": 1},
    }  # fmt: skip


def test_a_replica_that_waits_for_its_first_order_is_loading() -> None:
    assert status.shown(Replica(0)) == "loading"
    assert status.shown(Replica(0, restarts=1)) == "dead"
