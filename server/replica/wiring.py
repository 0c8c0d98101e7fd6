"""What a nursery and its replicas have inherited: fds, facts, and the way to report.

Standard library only, Python 3.7 to 3.14.
"""

import json
import os

MAX_REPORT = 4096  # PIPE_BUF: writes up to this are atomic
# Exit codes that the supervisor reads; the numbers are those of server.errors.ExitCode.
EXIT_LOAD_FAILED = 6
EXIT_OUT_OF_MEMORY = 8


class Wiring:
    """The inherited fds and the facts that every replica of this nursery shares."""

    def __init__(self, facts):
        # type: (dict) -> None
        self.memory = facts["memory"]  # type: int
        self.layout = tuple(facts["layout"])
        self.queue = facts["queue"]  # type: int
        self.completions = facts["completions"]  # type: list
        self.reports = facts["reports"]  # type: int
        self.control = facts["control"]  # type: int
        self.predict_log = facts["predict_log"]  # type: int
        self.crashes = facts["crashes"]  # type: list
        self.supervisor = facts["supervisor"]  # type: int
        self.artifact = facts["artifact"]  # type: str
        self.preload = facts["preload"]  # type: str
        self.threads = facts["threads"]  # type: int
        self.source = facts["source"]  # type: str
        self.sample = facts["sample"]  # type: str

    def report(self, event, **facts):
        # type: (str, object) -> None
        """Tell the supervisor. A text that is too long for one atomic write loses its beginning."""
        facts["event"] = event
        line = json.dumps(facts).encode() + b"\n"
        excess = len(line) - MAX_REPORT
        if excess > 0 and "error" in facts:
            error = str(facts["error"])
            # JSON may spend up to six bytes on one character.
            facts["error"] = "..." + error[max(len(error) // 2, excess + 3) :]
            return self.report(**facts)  # type: ignore
        os.write(self.reports, line)
