"""The events of a supervisor: a class for each kind, and the type of the function that shows them.

Pure.  `server.cli.display` shows the events on a terminal, `server.embedded` in the log of another server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForkServerStarted:
    """The model's interpreter runs; preloading took `preload_s` seconds."""

    python: str
    preload_s: float


@dataclass(frozen=True, slots=True)
class ReplicaChanged:
    """A replica has changed its state to loading, ready, spare or dead."""

    index: int
    state: str
    load_s: float = 0.0
    memory_mb: float = 0.0  # private memory, in 10^6 bytes
    reason: str = ""  # why the last process of this index ended
    crash: str = ""  # the dump of faulthandler, if the state is dead


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """All replicas ordered at the start have loaded; predict requests are answered."""

    url: str  # empty for an instance inside another server
    replicas: int
    start_s: float  # duration of the start
    sample: str = ""  # path of the sample request, for display
    sample_text: str = ""  # content of the sample request, if its file comes out of a zip


@dataclass(frozen=True, slots=True)
class Note:
    """A message for the operator."""

    message: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The instance begins to stop. `served`: it was ready once; `failed`: it stops because of an error."""

    served: bool
    failed: bool


@dataclass(frozen=True, slots=True)
class Stopped:
    """All processes of the instance have ended. The fields are those of Stopping."""

    served: bool
    failed: bool


Event = ForkServerStarted | ReplicaChanged | InstanceReady | Note | Stopping | Stopped
Announce = Callable[[Event], None]
