"""What the supervisor announces: a class for each event, and the type of what shows them.

Pure.  `server.cli.display` shows events to a person, `server.embedded` to the log of another server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForkServerStarted:
    """The model's interpreter runs; it has preloaded for `preload_s` seconds."""

    python: str
    preload_s: float


@dataclass(frozen=True, slots=True)
class ReplicaChanged:
    """A replica is in another state: loading, ready, spare or dead."""

    index: int
    state: str
    load_s: float = 0.0
    memory_mb: float = 0.0
    reason: str = ""  # why the last process of this index ended
    crash: str = ""  # what faulthandler wrote, where the state is dead


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """Everything that was ordered at the start has loaded, and a request would be answered."""

    url: str  # empty for an instance inside another server
    replicas: int
    start_s: float
    sample: str = ""  # path of a sample request, as it is to be shown
    sample_text: str = ""  # its content, where that file is not the user's


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person should know, in words."""

    message: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The instance winds down. `served`: it was ready once; `failed`: an error ends it, which follows."""

    served: bool
    failed: bool


@dataclass(frozen=True, slots=True)
class Stopped:
    """All its processes have ended."""

    served: bool
    failed: bool


Event = ForkServerStarted | ReplicaChanged | InstanceReady | Note | Stopping | Stopped
Announce = Callable[[Event], None]
