"""The fork server as the supervisor sees it: start it, order replicas from it, end it.

Its other half, server/replica/fork_server.py, runs in the model's interpreter.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from twofold.server.supervision.channels import Channels

RUNTIME = Path(__file__).parents[1] / "replica"


@dataclass(frozen=True, slots=True)
class ForkServerSpec:
    """What a fork server must know besides the channels."""

    python: Path
    variables: Mapping[str, str]
    artifact: Path
    preload: str
    threads: int
    claim: int  # requests that a replica may take at once
    source: str
    sample: Path | None

    def without_preload(self) -> ForkServerSpec:
        return replace(self, preload="none")


class ForkServer:
    def __init__(self, channels: Channels, facts: ForkServerSpec) -> None:
        self.preload = facts.preload
        self._control, theirs = socket.socketpair()
        completions, crashes = [pipe.write for pipe in channels.completions], list(channels.crashes)
        single = {
            "memory": channels.memory_fd,
            "queue": channels.queue.read,
            "reports": channels.reports.write,
            "predict_log": channels.predict_log.write,
            "control": theirs.fileno(),
        }
        wiring = {
            **single,
            "completions": completions,
            "crashes": crashes,
            "layout": channels.layout.as_tuple(),
            "supervisor": os.getpid(),
            "artifact": str(facts.artifact),
            "preload": facts.preload,
            "threads": facts.threads,
            "claim": facts.claim,
            "source": facts.source,
            "sample": str(facts.sample or ""),
        }
        self._process = subprocess.Popen(
            [str(facts.python), str(RUNTIME), "fork_server", json.dumps(wiring)],
            env=dict(facts.variables),
            cwd=facts.artifact,
            stdin=subprocess.DEVNULL,
            stdout=channels.native_log.write,
            stderr=channels.native_log.write,
            pass_fds=[*single.values(), *completions, *crashes],
            process_group=0,  # a Ctrl-C in the terminal is the supervisor's to handle
        )
        theirs.close()
        self.pid = self._process.pid

    def order(self, index: int, spare: bool, variables: Mapping[str, str]) -> bool:
        """Ask for a replica; False when the fork server is no more."""
        line = json.dumps({"replica": index, "spare": spare, "variables": dict(variables)}) + "\n"
        try:
            self._control.sendall(line.encode())
        except OSError:
            return False
        return True

    def ended(self, status: int) -> None:
        """The supervisor has reaped it."""
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._control.close()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
