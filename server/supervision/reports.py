"""Reports of a fork server and its replicas: one JSON line for each event, one class for each kind.

Pure.  `report()` in server/replica/inherited.py writes the lines; its keyword arguments are the fields of
these classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForkServerReport:
    """A fork server runs; preloading took `preload_s` seconds."""

    pid: int
    python: str
    preload_s: float
    failed: list[str]  # imports that failed while preloading, each with its reason


@dataclass(frozen=True, slots=True)
class PreloadFailedReport:
    """The model did not load in the fork server; the fork server exits."""

    stage: str
    error: str


@dataclass(frozen=True, slots=True)
class ForkedReport:
    """The fork server has forked a replica."""

    replica: int
    pid: int


@dataclass(frozen=True, slots=True)
class NotForkedReport:
    """The fork server cannot fork a replica because a limit of the machine is reached."""

    replica: int
    error: str


@dataclass(frozen=True, slots=True)
class LoadingReport:
    """A replica runs and begins to load the model."""

    replica: int
    pid: int


@dataclass(frozen=True, slots=True)
class LoadFailedReport:
    """The model did not load in a replica; the replica exits."""

    replica: int
    stage: str
    error: str


@dataclass(frozen=True, slots=True)
class ReadyReport:
    """A replica has loaded the model, and tried the sample request if there is one, in `load_s` seconds."""

    replica: int
    pid: int
    load_s: float


LoadFailureReport = PreloadFailedReport | LoadFailedReport
ReplicaReport = ForkedReport | NotForkedReport | LoadingReport | LoadFailedReport | ReadyReport
Report = ForkServerReport | PreloadFailedReport | ReplicaReport

KINDS: dict[str, type[Report]] = {
    "fork_server": ForkServerReport,
    "preload_failed": PreloadFailedReport,
    "forked": ForkedReport,
    "not_forked": NotForkedReport,
    "loading": LoadingReport,
    "failed": LoadFailedReport,
    "ready": ReadyReport,
}


def parse(line: bytes) -> Report:
    """Parse one line. Raises ValueError for a line that is not a report."""
    try:
        fields = json.loads(line)
        return KINDS[fields.pop("event")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a report of a fork server or a replica: {line[:200]!r}") from error
