"""The replicas of one instance: order them, watch them, learn why they ended, replace them.

Touches the fork server, the mailboxes and the replicas' processes; the supervisor owns the loop that
calls in here and passes the time (monotonic seconds).

What a dead replica had in hand stands in its mailbox.  The first descriptor that it had not handled
is the request it died on, or the last where it had handled all and could not say so: it is offered
once more, and refused after its second death.  The others are offered again without blame.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twofold.errors import EnvironmentFailure, ModelError
from twofold.server.config import Config
from twofold.server.machine import capacity, memory_usage
from twofold.server.machine.capacity import CapacityPlan
from twofold.server.replica import frame, slots
from twofold.server.supervision import exit_reasons
from twofold.server.supervision.channels import Channels
from twofold.server.supervision.fork_server import ForkServer, ForkServerSpec
from twofold.server.supervision.quarantine import Quarantine
from twofold.server.supervision.replica_state import Replica, State

HANG_GRACE = 0.25  # seconds past its deadline before a replica counts as hung
ABORT_GRACE = 1.0  # between SIGABRT, which makes it say where it hangs, and SIGKILL
PROBE_TIMEOUT = 30.0  # for the first replica forked from a loaded model
SHORT_LOAD = 5.0  # a replica that loads faster is worth waiting for
EMPTY_MAILBOX = bytes(slots.MAILBOX_SIZE)

Announce = Callable[..., None]


@dataclass(frozen=True, slots=True)
class PoolContext:
    """What a pool works with."""

    config: Config
    plan: CapacityPlan
    facts: ForkServerSpec
    channels: Channels
    quarantine: Quarantine
    announce: Announce


class ReplicaPool:
    def __init__(self, supplies: PoolContext) -> None:
        self.supplies = supplies
        self.settings = supplies.config.replicas
        self.channels = supplies.channels
        self.announce = supplies.announce
        self.facts = supplies.facts
        self.wanted = supplies.plan.replicas
        count = supplies.plan.replicas + self.settings.spare
        gpus = supplies.plan.gpus or (None,)
        self.replicas = [Replica(index, gpus[index % len(gpus)]) for index in range(count)]
        self.restarts: dict[str, int] = {}
        self.ever_ready = False
        self.fork_server_works = False  # it has reported at least once
        self.measured = False
        self.leaving = False
        self.changed = True  # the published status is out of date
        self.unloadable = ""  # why the fork server could not load the model
        self.fallback = ""  # why preload did not stay as wanted
        self.memory_saved = 0  # bytes that replicas share instead of having a copy each
        self.messages: list[str] = []
        self.fork_server: ForkServer | None = None
        self._completions = self.channels.completion_writers()
        self._early: dict[int, int] = {}  # ends that we heard of before we knew whose pid it was
        self._ooms = exit_reasons.oom_kills()

    # ------------------------------------------------------------------ starting

    def start(self, now: float) -> None:
        """Start the fork server and order the first replica, whose memory decides how many follow."""
        self.fork_server = ForkServer(self.channels, self.facts)
        self._order(self.replicas[0], now)

    def _order(self, replica: Replica, now: float) -> None:
        serving = sum(r.state in (State.READY, State.LOADING) and not r.spare for r in self.replicas)
        replica.spare = serving >= self.wanted
        variables = {"TWOFOLD_REPLICA": str(replica.index)}
        if replica.gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = replica.gpu
        mailbox = self._mailbox(replica)
        self.channels.memory[mailbox : mailbox + slots.MAILBOX_SIZE] = EMPTY_MAILBOX
        words = slots.REPLICA_WORDS_OFFSET + replica.index * slots.REPLICA_WORDS_SIZE
        replica.served = slots.REPLICA_WORDS.unpack_from(self.channels.memory, words)[0]
        if self.fork_server is None or not self.fork_server.order(replica.index, replica.spare, variables):
            replica.retry_at = now + 0.1  # the fork server is gone; its successor is about to start
            return
        replica.order(now)
        self._say(replica)

    def step(self, now: float) -> None:
        """Whatever is due: orders after a delay, loads and requests that take too long."""
        if self.leaving:
            return
        if self.fork_server is None:
            self.fork_server = ForkServer(self.channels, self.facts)
        for replica in self.replicas[: None if self.measured else 1]:
            if replica.state in (State.ABSENT, State.BACKOFF) and now >= replica.retry_at:
                self._order(replica, now)
            elif replica.pid and replica.state in (State.READY, State.LOADING, State.LEAVING):
                self._watch(replica, now)
            elif replica.state == State.LOADING and now > replica.since + self.settings.load_timeout:
                self._end_fork_server()
        self.step_availability()

    def _watch(self, replica: Replica, now: float) -> None:
        if replica.aborted_at:
            if now > replica.aborted_at + ABORT_GRACE:
                self._signal(replica, signal.SIGKILL)
            return
        if replica.state == State.LOADING:
            probing = self.facts.preload == "model" and not self.ever_ready
            limit = PROBE_TIMEOUT if probing else self.settings.load_timeout
            if now > replica.since + limit:
                self._abort(replica, f"the model did not load within {limit:g} s", now)
        elif (deadline := self._deadline(replica)) and now > deadline + HANG_GRACE:
            self._abort(
                replica, f"predict() hung past the deadline of {self.settings.predict_timeout:g} s", now
            )

    def _end_fork_server(self) -> None:
        """It was asked for a replica and has forked none: it hangs, or the model that it preloads does."""
        if not self.fork_server_works:
            self.unloadable = f"the model did not load within {self.settings.load_timeout:g} s"
        if self.fork_server is not None:
            self.fork_server.kill()

    def _abort(self, replica: Replica, cause: str, now: float) -> None:
        """SIGABRT first: faulthandler then says where it hangs, even when C code holds the GIL."""
        replica.cause, replica.aborted_at = cause, now
        self._signal(replica, signal.SIGABRT)

    def _deadline(self, replica: Replica) -> float:
        """When the request in hand should be answered (monotonic seconds); 0 if there is none."""
        memory, mailbox = self.channels.memory, self._mailbox(replica)
        for cell in range(mailbox, mailbox + slots.MAILBOX_SIZE, frame.DESCRIPTOR_SIZE):
            slot, generation, _, kind, _, flag = frame.DESCRIPTOR.unpack_from(memory, cell)
            if kind and flag != frame.HANDLED:
                header = slots.SLOT_HEADER.unpack_from(memory, self.channels.layout.slot(slot))
                return header[4] / 1e9 if header[0] == generation else 0.0
        return 0.0

    # ------------------------------------------------------------------ reports

    def hear(self, report: Mapping[str, Any], now: float) -> None:
        """One line from the reports pipe."""
        event = report["event"]
        if event == "fork_server":
            self.fork_server_works = True
            self.announce("fork_server", python=report["python"], seconds=report["seconds"])
            for failed in report["failed"]:
                self._note(f"preload: imports: {failed}")
        elif event == "preload_failed":
            self.unloadable = exit_reasons.load_failure(
                report
            )  # said when the fork server ends, which it does now
        else:
            self._hear_replica(self.replicas[report["replica"]], event, report, now)
        self.changed = True

    def _hear_replica(self, replica: Replica, event: str, report: Mapping[str, Any], now: float) -> None:
        if replica.state != State.LOADING:
            return
        if event in ("forked", "loading"):
            replica.pid = report["pid"]
            if replica.pid in self._early:
                self.died(replica.pid, self._early.pop(replica.pid), now)
        elif event == "ready":
            self._ready(replica, report, now)
        elif event == "failed":
            replica.cause = exit_reasons.load_failure(report)
        elif event == "unborn":
            replica.die("could not be forked: " + report["error"], useful=False, now=now)

    def _ready(self, replica: Replica, report: Mapping[str, Any], now: float) -> None:
        replica.load_seconds = report["seconds"]
        replica.memory = memory_usage.measure(replica.pid).private
        replica.move("spare" if replica.spare else "ready", now)
        self.ever_ready = True
        if not self.measured:
            self._fit(replica, now)
        self._say(replica)

    def _fit(self, first: Replica, now: float) -> None:
        """Never more replicas than memory allows, as measured on the first one."""
        self.measured = True
        fitting, reason = capacity.fit(self.supplies.plan, first.memory, capacity.memory_available())
        if fitting < self.wanted:
            self._note(reason)
            self.wanted = fitting
            del self.replicas[fitting:]
        for replica in self.replicas[1:]:
            self._order(replica, now)

    # ------------------------------------------------------------------ ends

    def died(self, pid: int, status: int, now: float) -> bool:
        """A process was reaped; False if it was none of ours."""
        if self.fork_server is not None and pid == self.fork_server.pid:
            self._fork_server_ended(status, now)
            return True
        replica = next((r for r in self.replicas if r.pid == pid), None)
        if replica is None:
            self._early[pid] = status
            if len(self._early) > 64:
                del self._early[next(iter(self._early))]
            return False
        self._bury(replica, status, now)
        return True

    def _fork_server_ended(self, status: int, now: float) -> None:
        """Its replicas live on; what it had been asked for and not yet forked is asked for again."""
        assert self.fork_server is not None
        self.fork_server.ended(status)
        self.fork_server = None
        if self.unloadable:
            raise ModelError(self.unloadable, exit_reasons.remedy(self.unloadable))
        if not self.fork_server_works:
            how = exit_reasons.decode(status, out_of_memory=False)
            raise EnvironmentFailure(
                f"the model's interpreter {self.facts.python} does not start: {how}",
                "the predict log has what it printed; run `twofold check`",
            )
        for replica in self.replicas:
            if replica.state == State.LOADING and not replica.pid:
                replica.die("the fork server ended before it was forked", useful=False, now=now)

    def _bury(self, replica: Replica, status: int, now: float) -> None:
        _kill_group(replica.pid)  # whatever predict() had forked
        ooms = exit_reasons.oom_kills()
        reason = exit_reasons.decode(status, ooms > self._ooms, replica.cause)
        self._ooms = ooms
        crash = exit_reasons.read_crash(self.channels.crashes[replica.index])
        reason += exit_reasons.crash_line(crash, str(self.facts.artifact))
        if replica.state == State.LEAVING:
            replica.move("died", now)
            replica.pid = 0
        else:
            loading = replica.state == State.LOADING
            words = slots.REPLICA_WORDS_OFFSET + replica.index * slots.REPLICA_WORDS_SIZE
            served = slots.REPLICA_WORDS.unpack_from(self.channels.memory, words)[0]
            hung = bool(replica.aborted_at)
            replica.die(reason, useful=served > replica.served, now=now)
            self.restarts[reason] = self.restarts.get(reason, 0) + 1
            if loading and not self.ever_ready:
                self._give_up_or_fall_back(reason)  # which says the reason
            else:
                self.announce("replica", index=replica.index, state="dead", reason=reason, crash=crash)
            self._settle(replica, hung, reason, now)
            self._call_spare(now)
        self.changed = True

    def _give_up_or_fall_back(self, reason: str) -> None:
        if self.facts.preload != "model":
            raise ModelError(reason, exit_reasons.remedy(reason))
        self.fall_back(f"a replica forked from the loaded model failed its trial: {ModelError(reason)}")

    def fall_back(self, why: str) -> None:
        """From now on each replica loads for itself."""
        self.fallback = why
        self._note(f"preload: model is not kept; {why}")
        self.facts = self.facts.without_preload()
        if self.fork_server is not None:
            self.fork_server.kill()
            self._fork_server_ended(signal.SIGKILL, time.monotonic())

    def _call_spare(self, now: float) -> None:
        """A crash is a switch, not a model load, where a spare stands ready."""
        spare = next((r for r in self.replicas if r.state == State.SPARE), None)
        if spare is not None and sum(r.state == State.READY for r in self.replicas) < self.wanted:
            spare.spare = False
            spare.move("called", now)
            self._signal(spare, signal.SIGUSR1)

    def _settle(self, replica: Replica, hung: bool, reason: str, now: float) -> None:
        """Hand what it had in hand back to the fronts."""
        memory, mailbox = self.channels.memory, self._mailbox(replica)
        cells = frame.DESCRIPTOR.iter_unpack(memory[mailbox : mailbox + slots.MAILBOX_SIZE])
        held = [cell for cell in cells if cell[3]]
        memory[mailbox : mailbox + slots.MAILBOX_SIZE] = EMPTY_MAILBOX
        guilty = next((cell for cell in held if cell[5] != frame.HANDLED), held[-1] if held else None)
        for cell in held:
            slot, generation, size, kind, attempt, _ = cell
            outcome = frame.RETRY
            if cell is guilty:
                outcome = self._judge(slot, generation, size, attempt, hung, now)
                attempt += 1
            completion = frame.COMPLETION.pack(
                slot, generation, size, outcome, attempt, replica.index, 0, 0, 0, kind
            )
            os.write(self._completions[slot // self.channels.layout.slots_per_front], completion)

    def _judge(self, slot: int, generation: int, size: int, attempt: int, hung: bool, now: float) -> int:
        """RETRY or REFUSED for the request that a replica died on."""
        base = self.channels.layout.slot(slot)
        if hung or self.settings.replay == "never":
            return frame.REFUSED
        if attempt == 0:
            return frame.RETRY
        if slots.SLOT_HEADER.unpack_from(self.channels.memory, base)[0] == generation:
            start = base + slots.SLOT_HEADER_SIZE
            kept = self.supplies.quarantine.add(self.channels.memory[start : start + size], int(now * 1e9))
            self._note(f"a request killed two replicas and is quarantined; {kept}")
        return frame.REFUSED

    # ------------------------------------------------------------------ leaving

    def leave(self, number: int, now: float) -> None:
        """Pass a signal on to every replica; with SIGTERM each finishes what it has in hand."""
        self.leaving = True
        for replica in self.replicas:
            if replica.pid:
                replica.move("leave", now)
                self._signal(replica, signal.Signals(number))

    def alive(self) -> bool:
        return any(replica.pid for replica in self.replicas)

    def ready_count(self) -> int:
        return sum(replica.state == State.READY for replica in self.replicas)

    def settled(self) -> bool:
        """Everything that was ordered at the start has loaded."""
        return self.measured and all(r.state in (State.READY, State.SPARE) for r in self.replicas)

    def count_restart(self, who: str) -> None:
        self.restarts[who] = self.restarts.get(who, 0) + 1

    def note_sharing(self) -> None:
        """Once all are ready: how much memory the fork saves."""
        sizes = [memory_usage.measure(replica.pid) for replica in self.replicas]
        self.memory_saved = sum(size.rss - size.pss for size in sizes)
        if self.facts.preload == "model":
            total, alone = sum(size.pss for size in sizes) / 1e6, sum(size.rss for size in sizes) / 1e6
            self._note(
                f"preload: model: memory of {capacity.many(len(sizes), 'replica')} is {total:.0f} MB (PSS) "
                f"instead of {alone:.0f} MB"
            )

    def _note(self, message: str) -> None:
        self.messages.append(message)
        del self.messages[:-8]
        self.changed = True
        self.announce("note", message=message)

    def step_availability(self) -> None:
        """Tell the fronts whether waiting makes sense."""
        hopeful = any(
            r.state == State.READY
            or (
                r.state == State.LOADING
                and self.ever_ready
                and r.failures < 2
                and r.load_seconds < SHORT_LOAD
            )
            or (r.state == State.BACKOFF and r.failures < 2 and r.load_seconds < SHORT_LOAD)
            for r in self.replicas
        )
        slots.CONTROL.pack_into(self.channels.memory, slots.READY_REPLICAS, self.ready_count())
        slots.CONTROL.pack_into(self.channels.memory, slots.UNAVAILABLE, not hopeful)

    def _mailbox(self, replica: Replica) -> int:
        return slots.MAILBOX_OFFSET + replica.index * slots.MAILBOX_SIZE

    def _signal(self, replica: Replica, number: signal.Signals) -> None:
        try:
            os.kill(replica.pid, number)
        except ProcessLookupError:
            pass  # it is dead and will be reaped in this or the next turn

    def _say(self, replica: Replica) -> None:
        self.changed = True
        self.announce(
            "replica",
            index=replica.index,
            state=str(replica.state),
            seconds=replica.load_seconds,
            memory_mb=replica.memory / 1e6,
            reason=replica.reason,
        )


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # the group is empty, or what is left in it is no longer ours
