"""The fork server as the supervisor sees it: start it, order replicas from it, learn why it ended.

Touches the fork server's process and its control socket.  The other half, server/replica/fork_server.py,
runs in the model's interpreter.
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

from twofold.errors import EnvironmentFailure, ModelError
from twofold.server.supervision import exit_reasons
from twofold.server.supervision.channels import Channels
from twofold.server.supervision.reports import PreloadFailedReport

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


class ForkServerProcess:
    """One process of the model's interpreter, from its start to its end."""

    def __init__(self, channels: Channels, spec: ForkServerSpec) -> None:
        """Start it. Raises OSError."""
        self._control, theirs = socket.socketpair()
        completions, crashes = [pipe.write for pipe in channels.completions], list(channels.crashes)
        single = {
            "memory": channels.memory_fd,
            "queue": channels.queue.read,
            "reports": channels.reports.write,
            "predict_log": channels.predict_log.write,
            "control": theirs.fileno(),
        }
        inherited = {
            **single,
            "completions": completions,
            "crashes": crashes,
            "layout": channels.layout.as_tuple(),
            "supervisor": os.getpid(),
            "artifact": str(spec.artifact),
            "preload": spec.preload,
            "threads": spec.threads,
            "claim": spec.claim,
            "source": spec.source,
            "sample": str(spec.sample or ""),
        }
        self._process = subprocess.Popen(
            [str(spec.python), str(RUNTIME), "fork_server", json.dumps(inherited)],
            env=dict(spec.variables),
            cwd=spec.artifact,
            stdin=subprocess.DEVNULL,
            stdout=channels.native_log.write,
            stderr=channels.native_log.write,
            pass_fds=[*single.values(), *completions, *crashes],
            process_group=0,  # a Ctrl-C in the terminal is the supervisor's to handle
        )
        theirs.close()
        self.pid = self._process.pid

    def order(self, index: int, spare: bool, variables: Mapping[str, str]) -> bool:
        """Ask for a replica; False when the process has ended."""
        line = json.dumps({"replica": index, "spare": spare, "variables": dict(variables)}) + "\n"
        try:
            self._control.sendall(line.encode())
        except OSError:
            return False
        return True

    def ended(self, status: int) -> None:
        """The supervisor has reaped it, with this wait status."""
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._control.close()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """The fork server of an instance through all its processes, of which there is one at a time."""

    def __init__(self, channels: Channels, spec: ForkServerSpec, load_timeout_s: float) -> None:
        self._channels = channels
        self._load_timeout_s = load_timeout_s
        self.spec = spec
        self.process: ForkServerProcess | None = None
        self.came_up = False  # a process of it has reported
        self.fallback = ""  # why preload did not stay as wanted
        self._unloadable = ""  # why it could not load the model

    @property
    def pid(self) -> int:
        """Of the present process; 0 if there is none."""
        return self.process.pid if self.process is not None else 0

    def start(self) -> None:
        """Start a process unless there is one. Raises OSError."""
        if self.process is None:
            self.process = ForkServerProcess(self._channels, self.spec)

    def order(self, index: int, spare: bool, variables: Mapping[str, str]) -> bool:
        """Ask for a replica; False when no process is there to fork it."""
        return self.process is not None and self.process.order(index, spare, variables)

    def preload_failed(self, report: PreloadFailedReport) -> None:
        """ended() raises this reason, once the process has ended."""
        self._unloadable = exit_reasons.load_failure(report)

    def end_hung(self) -> None:
        """It was asked for a replica and has forked none: it hangs, or the model that it preloads does."""
        if not self.came_up:
            self._unloadable = f"the model did not load within {self._load_timeout_s:g} s"
        self.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def ended(self, status: int) -> None:
        """Its process was reaped with this wait status; start() makes a successor.

        Raises ModelError if the model cannot be preloaded, and EnvironmentFailure if no process came up.
        """
        assert self.process is not None
        self.process.ended(status)
        self.process = None
        if self._unloadable:
            raise ModelError(self._unloadable, exit_reasons.remedy(self._unloadable))
        if not self.came_up:
            how = exit_reasons.decode(status, out_of_memory=False)
            raise EnvironmentFailure(
                f"the model's interpreter {self.spec.python} does not start: {how}",
                "the predict log has what it printed; run `twofold check`",
            )

    def give_up_preload(self, reason: str) -> None:
        """The first replica died for this reason: from now on each loads the model for itself.

        Raises ModelError if that is how they load already.
        """
        if self.spec.preload != "model":
            raise ModelError(reason, exit_reasons.remedy(reason))
        self.fallback = f"a replica forked from the loaded model failed its trial: {ModelError(reason)}"
        self.spec = self.spec.without_preload()
        self.kill()
