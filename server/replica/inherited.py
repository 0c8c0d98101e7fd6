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
        """Tell the supervisor. A text that is too long for one atomic write loses its beginning."""
        facts["event"] = event
        line = json.dumps(facts).encode() + b"\n"
        excess = len(line) - MAX_REPORT
        if excess > 0 and "error" in facts:
            error = str(facts["error"])
            # JSON may spend up to six bytes on one character.
            facts["error"] = "..." + error[max(len(error) // 2, excess + 3) :]
            return self.report(**facts)
        os.write(self.reports, line)
