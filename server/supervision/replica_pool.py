"""The replica pool of an instance: orders replicas, watches them, finds why they ended, replaces them.

Touches the replicas' processes and the control words.  fork_server.py has the fork server, replica_memory.py
the shared memory that replicas write, incidents.py the notes.  The supervisor's loop calls the pool and
passes the time (`now_s`, monotonic seconds).
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from twofold.server.config import Config
from twofold.server.machine import capacity, memory_usage
from twofold.server.machine.capacity import CapacityPlan
from twofold.server.replica import slots
from twofold.server.supervision import exit_reasons
from twofold.server.supervision.channels import Channels
from twofold.server.supervision.events import Announce, ForkServerStarted, ReplicaChanged
from twofold.server.supervision.fork_server import ForkServer, ForkServerSpec
from twofold.server.supervision.incidents import Incidents
from twofold.server.supervision.quarantine import Quarantine
from twofold.server.supervision.replica_memory import ReplicaMemory
from twofold.server.supervision.replica_state import Replica, State
from twofold.server.supervision.reports import (
    ForkedReport,
    ForkServerReport,
    LoadFailedReport,
    LoadingReport,
    NotForkedReport,
    PreloadFailedReport,
    ReadyReport,
    Report,
)  # fmt: skip
from twofold.server.supervision.status import PoolSnapshot

HANG_GRACE_S = 0.25  # a replica counts as hung this long after the deadline of its request
ABORT_GRACE_S = 1.0  # between SIGABRT, on which faulthandler dumps the stacks, and SIGKILL
TRIAL_TIMEOUT_S = 30.0  # for the first replica forked from a loaded model
ORDER_AGAIN_S = 0.1  # delay of an order while no fork server runs
FORK_SERVER = "fork_server"  # a reason of twofold_replica_restarts_total
MAX_UNKNOWN_ENDS = 64


@dataclass(frozen=True, slots=True)
class PoolContext:
    """The parameters of a pool."""

    config: Config
    plan: CapacityPlan
    spec: ForkServerSpec
    channels: Channels
    quarantine: Quarantine
    announce: Announce


class ReplicaPool:
    """All replicas of an instance, and the fork server that they come from."""

    def __init__(self, context: PoolContext) -> None:
        self.plan = context.plan
        self.settings = context.config.replicas
        self.channels = context.channels
        self.incidents = Incidents(context.announce)
        self.memory = ReplicaMemory(context.channels, context.quarantine, self.settings.replay == "once")
        self.fork_server = ForkServer(context.channels, context.spec, self.settings.load_timeout)
        self.wanted = context.plan.replicas
        count = context.plan.replicas + self.settings.spare
        gpus = context.plan.gpus or (None,)
        self.replicas = [Replica(index, gpus[index % len(gpus)]) for index in range(count)]
        self.ever_ready = False
        self.leaving = False
        self._measured = False  # memory of the first replica is known, and therefore the final count
        self._saved_bytes = 0  # memory that replicas share instead of copying
        self._unknown_ends: dict[int, int] = {}  # pid -> wait status; its report may come later
        self._ooms = exit_reasons.oom_kills()

    # ------------------------------------------------------------------ starting

    def start(self, now_s: float) -> None:
        """Start the fork server and order the first replica, whose memory usage limits the others.

        Raises OSError if the model's interpreter cannot be started.
        """
        self.fork_server.start()
        self._order(self.replicas[0], now_s)

    def _order(self, replica: Replica, now_s: float) -> None:
        serving = sum(r.state in (State.READY, State.LOADING) and not r.spare for r in self.replicas)
        replica.spare = serving >= self.wanted
        variables = {"TWOFOLD_REPLICA": str(replica.index)}
        if replica.gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = replica.gpu
        self.memory.clear(replica.index)
        replica.served = self.memory.served(replica.index)
        if self.fork_server.order(replica.index, replica.spare, variables):
            replica.order(now_s)
            self._announce_state(replica)
        else:
            replica.retry_at_s = now_s + ORDER_AGAIN_S

    def step(self, now_s: float) -> None:
        """Order replicas whose delay is over; end those that load or compute for too long.

        Raises OSError if the model's interpreter cannot be started.
        """
        if self.leaving:
            return
        self.fork_server.start()
        for replica in self.replicas[: None if self._measured else 1]:
            if replica.state in (State.ABSENT, State.BACKOFF) and now_s >= replica.retry_at_s:
                self._order(replica, now_s)
            elif replica.pid and replica.state in (State.READY, State.LOADING, State.LEAVING):
                self._watch(replica, now_s)
            elif replica.state == State.LOADING and now_s > replica.since_s + self.settings.load_timeout:
                self.fork_server.end_hung()
        self.step_availability()

    def _watch(self, replica: Replica, now_s: float) -> None:
        """End a replica that is late: SIGABRT, on which faulthandler dumps its stacks, then SIGKILL."""
        if replica.aborted_at_s:
            if now_s > replica.aborted_at_s + ABORT_GRACE_S:
                _send_signal(replica.pid, signal.SIGKILL)
            return
        if replica.state == State.LOADING:
            trial = self.fork_server.spec.preload == "model" and not self.ever_ready
            limit_s = TRIAL_TIMEOUT_S if trial else self.settings.load_timeout
            late = now_s > replica.since_s + limit_s
            cause = f"the model did not load within {limit_s:g} s"
        else:
            deadline_s = self.memory.deadline_s(replica.index)
            late = 0.0 < deadline_s < now_s - HANG_GRACE_S
            cause = f"predict() hung past the deadline of {self.settings.predict_timeout:g} s"
        if late:
            replica.abort(cause, now_s)
            _send_signal(replica.pid, signal.SIGABRT)

    # ------------------------------------------------------------------ reports

    def take_report(self, report: Report, now_s: float) -> None:
        """Handle a report of the fork server or of a replica.

        Raises ModelError or EnvironmentFailure if it completes an end after which no replica can load.
        """
        self.incidents.changed = True
        if isinstance(report, ForkServerReport):
            self.fork_server.came_up = True
            self.incidents.announce(ForkServerStarted(report.python, report.preload_s))
            for failed in report.failed:
                self.incidents.note(f"preload: imports: {failed}")
            return
        if isinstance(report, PreloadFailedReport):
            self.fork_server.preload_failed(report)
            return
        replica = self.replicas[report.replica]
        if replica.state != State.LOADING:
            return
        if isinstance(report, ForkedReport | LoadingReport):
            replica.pid = report.pid
            if replica.pid in self._unknown_ends:
                self.died(replica.pid, self._unknown_ends.pop(replica.pid), now_s)
        elif isinstance(report, ReadyReport):
            self._ready(replica, report.load_s, now_s)
        elif isinstance(report, LoadFailedReport):
            replica.cause = exit_reasons.load_failure(report)
        elif isinstance(report, NotForkedReport):
            replica.die("could not be forked: " + report.error, useful=False, now_s=now_s)

    def _ready(self, replica: Replica, load_s: float, now_s: float) -> None:
        replica.load_s = load_s
        replica.memory_bytes = memory_usage.measure(replica.pid).private
        replica.move("spare" if replica.spare else "ready", now_s)
        self.ever_ready = True
        if not self._measured:
            self._order_the_others(replica, now_s)
        self._announce_state(replica)

    def _order_the_others(self, first: Replica, now_s: float) -> None:
        """Order all further replicas that fit into memory, as measured on the first one."""
        self._measured = True
        fitting, reason = capacity.fit(self.plan, first.memory_bytes, capacity.memory_available())
        if fitting < self.wanted:
            self.incidents.note(reason)
            self.wanted = fitting
            del self.replicas[fitting:]
        for replica in self.replicas[1:]:
            self._order(replica, now_s)

    # ------------------------------------------------------------------ ends

    def died(self, pid: int, status: int, now_s: float) -> bool:
        """A process was reaped with this wait status; False if it is neither replica nor fork server.

        Raises ModelError or EnvironmentFailure if no replica can load.
        """
        if pid == self.fork_server.pid:
            self._fork_server_ended(status, now_s)
            return True
        replica = next((r for r in self.replicas if r.pid == pid), None)
        if replica is None:
            self._unknown_ends[pid] = status
            if len(self._unknown_ends) > MAX_UNKNOWN_ENDS:
                del self._unknown_ends[next(iter(self._unknown_ends))]
            return False
        self._settle_end(replica, status, now_s)
        return True

    def _fork_server_ended(self, status: int, now_s: float) -> None:
        """Order again those replicas that the fork server had not forked; the others continue."""
        self.fork_server.ended(status)
        self.incidents.count_restart(FORK_SERVER)
        for replica in self.replicas:
            if replica.state == State.LOADING and not replica.pid:
                replica.die("the fork server ended before it was forked", useful=False, now_s=now_s)

    def _settle_end(self, replica: Replica, status: int, now_s: float) -> None:
        """Find why the replica ended, hand its requests back, and schedule its successor."""
        _kill_group(replica.pid)  # processes that predict() has forked
        ooms = exit_reasons.oom_kills()
        reason = exit_reasons.decode(status, ooms > self._ooms, replica.cause)
        self._ooms = ooms
        crash = exit_reasons.read_crash(self.channels.crashes[replica.index])
        reason += exit_reasons.crash_line(crash, str(self.fork_server.spec.artifact))
        self.incidents.changed = True
        if replica.state == State.LEAVING:
            replica.move("died", now_s)
            replica.pid = 0
            return
        trial, hung = replica.state == State.LOADING and not self.ever_ready, bool(replica.aborted_at_s)
        replica.die(reason, useful=self.memory.served(replica.index) > replica.served, now_s=now_s)
        self.incidents.count_restart(reason)
        if trial:
            self.fork_server.give_up_preload(reason)  # raises ModelError if it cannot be given up
            self.incidents.note(f"preload: model is not kept; {self.fork_server.fallback}")
            if self.fork_server.pid:
                self._fork_server_ended(signal.SIGKILL, now_s)
        else:
            self.incidents.announce(ReplicaChanged(replica.index, "dead", reason=reason, crash=crash))
        for note in self.memory.settle(replica.index, hung, now_s):
            self.incidents.note(note)
        self._call_spare(now_s)

    def _call_spare(self, now_s: float) -> None:
        """Promote a spare if a serving replica is missing: then a crash costs no model load."""
        spare = next((r for r in self.replicas if r.state == State.SPARE), None)
        if spare is not None and self.ready_count() < self.wanted:
            spare.spare = False
            spare.move("called", now_s)
            _send_signal(spare.pid, signal.SIGUSR1)

    # ------------------------------------------------------------------ leaving

    def leave(self, number: int, now_s: float) -> None:
        """Send a signal to every replica; on SIGTERM a replica finishes the requests that it holds."""
        self.leaving = True
        for replica in self.replicas:
            if replica.pid:
                replica.move("leave", now_s)
                _send_signal(replica.pid, number)

    # ------------------------------------------------------------------ state

    def alive(self) -> bool:
        """Whether any replica process runs."""
        return any(replica.pid for replica in self.replicas)

    def ready_count(self) -> int:
        """Number of serving replicas; spares do not count."""
        return sum(replica.state == State.READY for replica in self.replicas)

    def settled(self) -> bool:
        """Whether all replicas ordered at the start have loaded."""
        return self._measured and all(r.state in (State.READY, State.SPARE) for r in self.replicas)

    def measure_sharing(self) -> None:
        """Measure the memory that forking saves; call it once all replicas are ready."""
        sizes = [memory_usage.measure(replica.pid) for replica in self.replicas]
        rss, pss = sum(size.rss for size in sizes), sum(size.pss for size in sizes)
        self._saved_bytes = rss - pss
        if self.fork_server.spec.preload == "model":
            self.incidents.note(
                f"preload: model: memory of {capacity.many(len(sizes), 'replica')} is {pss / 1e6:.0f} MB "
                f"(PSS) instead of {rss / 1e6:.0f} MB"
            )

    def snapshot(self) -> PoolSnapshot:
        """The state of the pool, for the status of the instance."""
        return PoolSnapshot(
            replicas=tuple(self.replicas),
            wanted=self.wanted,
            preload_wanted=self.settings.preload,
            preload_used=self.fork_server.spec.preload,
            preload_why=self.fork_server.fallback,
            saved_bytes=self._saved_bytes,
            messages=tuple(self.incidents.messages),
            restarts=dict(self.incidents.restarts),
        )

    def step_availability(self) -> None:
        """Publish the number of ready replicas, and whether requests may be queued."""
        soon = any(replica.serves_soon(self.ever_ready) for replica in self.replicas)
        slots.CONTROL.pack_into(self.channels.memory, slots.READY_REPLICAS, self.ready_count())
        slots.CONTROL.pack_into(self.channels.memory, slots.UNAVAILABLE, not soon)

    def _announce_state(self, replica: Replica) -> None:
        self.incidents.announce(
            ReplicaChanged(
                index=replica.index,
                state=str(replica.state),
                load_s=replica.load_s,
                memory_mb=replica.memory_bytes / 1e6,
                reason=replica.reason,
            )
        )


def _send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has ended, and is reaped in this or the next turn


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # the group is empty, or its number belongs to another user by now
