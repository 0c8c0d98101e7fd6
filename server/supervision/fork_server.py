"""The supervisor's side of the fork server: start it, order replicas from it, find the reason of its end.

Touches the fork server's process and its control socket.  server/replica/fork_server.py is the side in the
model's interpreter.
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
    """The parameters of a fork server, besides the channels."""

    python: Path
    variables: Mapping[str, str]
    artifact: Path
    preload: str
    threads: int
    claim: int  # most requests that a replica takes in one read of the queue
    source: str  # `source` of the log records
    sample: Path | None

    def without_preload(self) -> ForkServerSpec:
        """The same parameters with `preload: none`."""
        return replace(self, preload="none")


class ForkServerProcess:
    """One process of the fork server, from its start to its end."""

    def __init__(self, channels: Channels, spec: ForkServerSpec) -> None:
        """Start the process. Raises OSError."""
        self._control, remote = socket.socketpair()
        completions, crashes = [pipe.write for pipe in channels.completions], list(channels.crashes)
        descriptors = {
            "memory": channels.memory_fd,
            "queue": channels.queue.read,
            "reports": channels.reports.write,
            "predict_log": channels.predict_log.write,
            "control": remote.fileno(),
        }
        inherited = {
            **descriptors,
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
            pass_fds=[*descriptors.values(), *completions, *crashes],
            process_group=0,  # SIGINT of the terminal must reach the supervisor only
        )
        remote.close()
        self.pid = self._process.pid

    def order(self, index: int, spare: bool, variables: Mapping[str, str]) -> bool:
        """Order a replica; False if the process has ended."""
        line = json.dumps({"replica": index, "spare": spare, "variables": dict(variables)}) + "\n"
        try:
            self._control.sendall(line.encode())
        except OSError:
            return False
        return True

    def ended(self, status: int) -> None:
        """Record that the process was reaped with this wait status."""
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._control.close()

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """The fork server of an instance: one process at a time, replaced when it ends."""

    def __init__(self, channels: Channels, spec: ForkServerSpec, load_timeout_s: float) -> None:
        self._channels = channels
        self._load_timeout_s = load_timeout_s
        self.spec = spec
        self.process: ForkServerProcess | None = None
        self.came_up = False  # one of its processes has reported
        self.fallback = ""  # the reason if `preload` differs from the setting
        self._unloadable = ""  # the reason if the model does not load

    @property
    def pid(self) -> int:
        """Pid of the current process; 0 if there is none."""
        return self.process.pid if self.process is not None else 0

    def start(self) -> None:
        """Start a process unless one runs. Raises OSError."""
        if self.process is None:
            self.process = ForkServerProcess(self._channels, self.spec)

    def order(self, index: int, spare: bool, variables: Mapping[str, str]) -> bool:
        """Order a replica; False if no process runs."""
        return self.process is not None and self.process.order(index, spare, variables)

    def preload_failed(self, report: PreloadFailedReport) -> None:
        """Record the reason, which ended() raises once the process has ended."""
        self._unloadable = exit_reasons.load_failure(report)

    def end_hung(self) -> None:
        """Kill a process that was ordered to fork a replica and has not done so within the load timeout."""
        if not self.came_up:
            self._unloadable = f"the model did not load within {self._load_timeout_s:g} s"
        self.kill()

    def kill(self) -> None:
        """Send SIGKILL if a process runs."""
        if self.process is not None:
            self.process.kill()

    def ended(self, status: int) -> None:
        """Record that the process was reaped with this wait status; start() makes a successor.

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
        """The first replica died for this reason: replace the process by one without preload.

        Raises ModelError if `preload` was not `model`: then no other way to load is left.
        """
        if self.spec.preload != "model":
            raise ModelError(reason, exit_reasons.remedy(reason))
        self.fallback = f"a replica forked from the loaded model failed its trial: {ModelError(reason)}"
        self.spec = self.spec.without_preload()
        self.kill()
