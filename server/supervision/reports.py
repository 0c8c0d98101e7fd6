"""What a fork server and its replicas report: one JSON line for each event, as a class for each kind.

Pure.  The lines are written by `report()` in server/replica/inherited.py, whose keyword arguments
are the fields of these classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForkServerReport:
    """A fork server has come up, after `preload_s` seconds of preloading."""

    pid: int
    python: str
    preload_s: float
    failed: list[str]  # imports that preloading could not do, with why


@dataclass(frozen=True, slots=True)
class PreloadFailedReport:
    """The model does not load in the fork server, which ends now."""

    stage: str
    error: str


@dataclass(frozen=True, slots=True)
class ForkedReport:
    """The fork server has forked a replica."""

    replica: int
    pid: int


@dataclass(frozen=True, slots=True)
class NotForkedReport:
    """The fork server cannot fork a replica: a limit of the machine is reached."""

    replica: int
    error: str


@dataclass(frozen=True, slots=True)
class LoadingReport:
    """A replica runs, and begins to load."""

    replica: int
    pid: int


@dataclass(frozen=True, slots=True)
class LoadFailedReport:
    """The model does not load in a replica, which ends now."""

    replica: int
    stage: str
    error: str


@dataclass(frozen=True, slots=True)
class ReadyReport:
    """A replica has loaded, and tried the sample request where there is one, in `load_s` seconds."""

    replica: int
    pid: int
    load_s: float


LoadFailure = PreloadFailedReport | LoadFailedReport
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
    """The report on one line. Raises ValueError for a line that is not a report."""
    try:
        facts = json.loads(line)
        return KINDS[facts.pop("event")](**facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a report of a fork server or a replica: {line[:200]!r}") from error
