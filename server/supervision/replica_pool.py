"""The replicas of one instance: order them, watch them, learn why they ended, replace them.

Touches the replicas' processes and the control words; the fork server, the replicas' part of the
shared memory and the notes have files of their own.  The supervisor owns the loop that calls in here
and passes the time (`now_s`, monotonic seconds).
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

HANG_GRACE_S = 0.25  # past its deadline before a replica counts as hung
ABORT_GRACE_S = 1.0  # between SIGABRT, which makes it say where it hangs, and SIGKILL
TRIAL_TIMEOUT_S = 30.0  # for the first replica forked from a loaded model
ORDER_AGAIN_S = 0.1  # the fork server has ended, and its successor is about to start
FORK_SERVER = "fork_server"  # a reason of twofold_replica_restarts_total
MAX_UNKNOWN_ENDS = 64


@dataclass(frozen=True, slots=True)
class PoolContext:
    """What a pool works with."""

    config: Config
    plan: CapacityPlan
    spec: ForkServerSpec
    channels: Channels
    quarantine: Quarantine
    announce: Announce


class ReplicaPool:
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
        self._measured = False  # how much memory a replica takes, and so how many there may be
        self._saved_bytes = 0  # that replicas share instead of having a copy each
        self._unknown_ends: dict[int, int] = {}  # pid -> status; its report may still be on the way
        self._ooms = exit_reasons.oom_kills()

    # ------------------------------------------------------------------ starting

    def start(self, now_s: float) -> None:
        """Start the fork server and order the first replica, whose memory decides how many follow.

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
        """Whatever is due: orders after a delay, loads and requests that take too long.

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
        """End a replica that is late: SIGABRT, on which faulthandler says where it hangs, then SIGKILL."""
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

    def hear(self, report: Report, now_s: float) -> None:
        """Take a report of the fork server or of a replica.

        Raises ModelError or EnvironmentFailure if it makes known an end with which no replica can load.
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
        """Never more replicas than memory allows, as measured on the first one."""
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
        self._bury(replica, status, now_s)
        return True

    def _fork_server_ended(self, status: int, now_s: float) -> None:
        """Its replicas go on; those that it had not forked are ordered again."""
        self.fork_server.ended(status)
        self.incidents.count_restart(FORK_SERVER)
        for replica in self.replicas:
            if replica.state == State.LOADING and not replica.pid:
                replica.die("the fork server ended before it was forked", useful=False, now_s=now_s)

    def _bury(self, replica: Replica, status: int, now_s: float) -> None:
        """Learn why it ended, hand back what it held, and have it replaced."""
        _kill_group(replica.pid)  # whatever predict() had forked
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
        """Where a spare stands ready, a crash costs no model load."""
        spare = next((r for r in self.replicas if r.state == State.SPARE), None)
        if spare is not None and self.ready_count() < self.wanted:
            spare.spare = False
            spare.move("called", now_s)
            _send_signal(spare.pid, signal.SIGUSR1)

    # ------------------------------------------------------------------ leaving

    def leave(self, number: int, now_s: float) -> None:
        """Pass a signal on to every replica; with SIGTERM each finishes the requests that it holds."""
        self.leaving = True
        for replica in self.replicas:
            if replica.pid:
                replica.move("leave", now_s)
                _send_signal(replica.pid, number)

    # ------------------------------------------------------------------ what is known

    def alive(self) -> bool:
        return any(replica.pid for replica in self.replicas)

    def ready_count(self) -> int:
        return sum(replica.state == State.READY for replica in self.replicas)

    def settled(self) -> bool:
        """Everything that was ordered at the start has loaded."""
        return self._measured and all(r.state in (State.READY, State.SPARE) for r in self.replicas)

    def measure_sharing(self) -> None:
        """Once all are ready: how much memory the fork saves."""
        sizes = [memory_usage.measure(replica.pid) for replica in self.replicas]
        rss, pss = sum(size.rss for size in sizes), sum(size.pss for size in sizes)
        self._saved_bytes = rss - pss
        if self.fork_server.spec.preload == "model":
            self.incidents.note(
                f"preload: model: memory of {capacity.many(len(sizes), 'replica')} is {pss / 1e6:.0f} MB "
                f"(PSS) instead of {rss / 1e6:.0f} MB"
            )

    def snapshot(self) -> PoolSnapshot:
        """What the status of the instance shows of its replicas."""
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
        """Tell the fronts whether waiting makes sense."""
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
        pass  # it is dead and will be reaped in this or the next turn


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # the group is empty, or what is left in it is not ours any more
