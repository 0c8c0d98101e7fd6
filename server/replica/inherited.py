"""What a fork server and its replicas have inherited: fds, facts, and the way to report.

Standard library only, Python 3.7 to 3.14.
"""

from __future__ import annotations

import json
import os
from typing import Any

MAX_REPORT = 4096  # PIPE_BUF: writes up to this are atomic
# Exit codes that the supervisor reads; the numbers are those of server.errors.ExitCode.
EXIT_BROKEN = 1
EXIT_LOAD_FAILED = 6
EXIT_OUT_OF_MEMORY = 8


class Inherited:
    """The inherited fds and the facts that every replica of this fork server shares."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.memory: int = facts["memory"]
        self.layout = tuple(facts["layout"])
        self.queue: int = facts["queue"]
        self.completions: list[Any] = facts["completions"]
        self.reports: int = facts["reports"]
        self.control: int = facts["control"]
        self.predict_log: int = facts["predict_log"]
        self.crashes: list[Any] = facts["crashes"]
        self.supervisor: int = facts["supervisor"]
        self.artifact: str = facts["artifact"]
        self.preload: str = facts["preload"]
        self.claim: int = facts["claim"]
        self.threads: int = facts["threads"]
        self.source: str = facts["source"]
        self.sample: str = facts["sample"]

    def report(self, event: str, **facts: Any) -> None:
        """Write a line to the supervisor; `facts` are the fields of a class in server/supervision/reports.py.

        An `error` that is too long for one atomic write loses its beginning. Raises OSError.
        """
        facts["event"] = event
        line = json.dumps(facts).encode() + b"\n"
        error = str(facts.get("error", ""))
        while len(line) > MAX_REPORT and error:
            # JSON spends one to six bytes on a character: so many at least are too many.
            error = error[(len(line) - MAX_REPORT + 5) // 6 :]
            facts["error"] = "..." + error
            line = json.dumps(facts).encode() + b"\n"
        os.write(self.reports, line)
