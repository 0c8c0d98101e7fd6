"""Real replicas from a real fork server: what they answer, and what they hold when they are killed."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.dispatch_harness import Heard, Turns, laid, queue_pipes
from tests.support.eventually import eventually
from twofold.errors import ExitCode
from twofold.server.config import Config, ReplicaSettings
from twofold.server.front.dispatch import EXPIRED, Dispatch
from twofold.server.machine import capacity
from twofold.server.replica import frame, prctl, slots
from twofold.server.supervision.channels import Channels
from twofold.server.supervision.events import Event
from twofold.server.supervision.fork_server import ForkServerProcess, ForkServerSpec
from twofold.server.supervision.quarantine import Quarantine
from twofold.server.supervision.replica_pool import PoolContext, ReplicaPool
from twofold.server.supervision.replica_state import State
from twofold.server.supervision.reports import ReadyReport, Report, parse

SLOTS = 64
SCORE = """
import os, signal, time


def load_model():
    return 10


def predict(data, model=load_model()):
    if isinstance(data, bytes):
        return {"bytes": len(data)}
    what = data.get("do")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        raise ValueError("said to the log")
    if what == "exit":
        raise SystemExit(3)
    if what == "memory":
        raise MemoryError
    if what == "sleep":
        time.sleep(data["seconds"])
    if what == "big":
        return "x" * data["size"]
    return data["n"] * model
"""


@pytest.fixture(autouse=True)
def subreaper() -> Iterator[None]:
    """Replicas become children of this process, as they become the supervisor's."""
    prctl.adopt_orphans()
    yield
    prctl._prctl(prctl.PR_SET_CHILD_SUBREAPER, 0)


@dataclass
class Desk:
    """A front's dispatch over fresh channels, and the reports of whoever works there."""

    pipes: Channels
    artifact: Path
    dispatch: Dispatch
    turns: Turns = field(default_factory=Turns)
    reports: list[Report] = field(default_factory=list)
    partial: bytes = b""

    def spec(self, claim: int = slots.MAX_CLAIM) -> ForkServerSpec:
        return ForkServerSpec(
            python=Path(sys.executable), variables=os.environ, artifact=self.artifact, preload="none",
            threads=1, claim=claim, source="test", sample=None,
        )  # fmt: skip

    def submit(self, body: bytes | dict[str, Any], kind: int = frame.JSON) -> Heard:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        slot = self.dispatch.table.take()
        assert slot is not None
        caller = Heard(self.dispatch, slot=slot)
        self.dispatch.table.body(slot, len(raw))[:] = raw
        self.dispatch.submit(caller, slot, len(raw), kind, b"request-1")
        return caller

    def turn(self, patience: float = 0.02) -> list[Report]:
        """One turn of a loop; the reports that it brought."""
        patience = 0.0 if self.turns.soon else patience
        select.select([self.pipes.completions[0].read, self.pipes.reports.read], [], [], patience)
        self.turns.turn()
        try:
            self.partial += os.read(self.pipes.reports.read, 65536)
        except BlockingIOError:
            return []
        *lines, self.partial = self.partial.split(b"\n")
        heard = [parse(line) for line in lines]
        self.reports += heard
        return heard

    def ready(self, since: int) -> list[ReadyReport]:
        """Replicas that have become ready since so many reports."""
        return [report for report in self.reports[since:] if isinstance(report, ReadyReport)]

    def until(self, done: Callable[[], object], patience: float = 20.0) -> None:
        eventually(done, lambda: self.reports, patience, self.turn)

    def answer(self, body: bytes | dict[str, Any], kind: int = frame.JSON) -> tuple[int, bytes]:
        caller = self.submit(body, kind)
        self.until(lambda: caller.said)
        return caller.said[0]

    def cells(self, index: int = 0) -> list[tuple[int, ...]]:
        """(slot, kind, attempt, flag) of every descriptor in a replica's mailbox."""
        start = slots.MAILBOX_OFFSET + index * slots.MAILBOX_SIZE
        raw = self.pipes.memory[start : start + slots.MAILBOX_SIZE]
        return [(cell[0], *cell[3:]) for cell in frame.DESCRIPTOR.iter_unpack(raw) if cell[3]]

    def all_free(self) -> bool:
        return sorted(self.dispatch.table.free) == list(range(SLOTS))


@contextmanager
def open_desk(tmp_path: Path, replicas: int = 1, timeout: float = 60.0) -> Iterator[Desk]:
    artifact = tmp_path / "artifact"
    artifact.mkdir(exist_ok=True)
    (artifact / "score.py").write_text(SCORE)
    with laid(SLOTS, 65536, 65536, replicas=replicas) as pipes:
        desk = Desk(pipes, artifact, Dispatch(pipes.memory, pipes.layout, 0, queue_pipes(pipes), timeout))
        desk.turns.start(desk.dispatch)
        yield desk


def all_heard(callers: list[Heard]) -> bool:
    return all(caller.said for caller in callers)


def wait_for(pid: int) -> int:
    """The exit code of a replica, as waitstatus_to_exitcode has it."""
    statuses: list[int] = []

    def ended() -> bool:
        if (status := reaped(pid)) is not None:
            statuses.append(status)
        return bool(statuses)

    eventually(ended, f"the end of {pid}")
    return os.waitstatus_to_exitcode(statuses[0])


def reaped(pid: int) -> int | None:
    """The wait status of a replica that has ended."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None  # the process that forked it is still its parent
    return status if ended else None


@dataclass
class Lone:
    """One replica without a pool: nobody settles what it leaves behind."""

    desk: Desk
    fork_server: ForkServerProcess
    pid: int = 0

    def order(self) -> None:
        before = len(self.desk.reports)
        assert self.fork_server.order(0, False, {"TWOFOLD_REPLICA": "0"})
        self.desk.until(lambda: self.desk.ready(before))
        (ready,) = self.desk.ready(before)
        self.pid = ready.pid

    def warm_up(self) -> None:
        """So many short predicts that it dares to take several at once."""
        for _ in range(40):
            callers = [self.desk.submit({"n": 1}) for _ in range(32)]
            self.desk.until(partial(all_heard, callers))

    def end(self, number: int) -> int:
        pid, self.pid = self.pid, 0
        os.kill(pid, number)
        return wait_for(pid)


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Lone]:
    with open_desk(tmp_path) as desk:
        made = Lone(desk, ForkServerProcess(desk.pipes, desk.spec()))
        try:
            made.order()
            yield made
        finally:
            if made.pid:
                made.end(signal.SIGKILL)
            made.fork_server.kill()
            made.fork_server.ended(os.waitpid(made.fork_server.pid, 0)[1])


# ---------------------------------------------------------------------- what it answers


def test_outcomes(lone: Lone) -> None:
    desk = lone.desk
    assert desk.answer({"n": 4}) == (frame.ANSWERED, b"40")
    assert desk.answer(b"\0\xff", frame.BYTES) == (frame.ANSWERED, b'{"bytes":2}')
    outcome, reason = desk.answer(b"{no json}")
    assert outcome == frame.MALFORMED and reason
    assert desk.answer({"do": "raise"}) == (frame.RAISED, b"")
    assert desk.answer({"do": "exit"}) == (frame.RAISED, b"")
    assert desk.answer({"do": "big", "size": 65536 - 2})[0] == frame.ANSWERED, (
        "two quotes make it fit exactly"
    )
    assert desk.answer({"do": "big", "size": 65536 - 1}) == (frame.TOO_LARGE, b"")
    assert desk.answer({"n": 5}) == (frame.ANSWERED, b"50"), "all of that by one process"
    log = os.read(desk.pipes.predict_log.read, 65536).decode()
    assert "said to the log" in log and "request-1" in log and "max_answer_mb" in log
    desk.until(lambda: not desk.cells())
    assert desk.all_free()
    served = slots.REPLICA_WORDS.unpack_from(desk.pipes.memory, slots.REPLICA_WORDS_OFFSET)[0]
    assert served == 8


def test_a_replica_is_a_process_of_its_own(lone: Lone) -> None:
    assert os.getpgid(lone.pid) == lone.pid
    status = Path(f"/proc/{lone.pid}/status").read_text()
    assert f"PPid:\t{os.getpid()}\n" in status
    assert Path(f"/proc/{lone.pid}/oom_score_adj").read_text() == "500\n"


def test_cancelled_and_expired_requests_are_skipped(lone: Lone) -> None:
    desk = lone.desk
    blocker = desk.submit({"do": "sleep", "seconds": 0.05, "n": 1})
    left = desk.submit({"n": 2})
    desk.dispatch.cancel(left, left.slot)
    desk.dispatch.timeout_ns = 1_000
    late = desk.submit({"n": 3})
    desk.until(lambda: blocker.said and desk.all_free())
    assert blocker.said == [(frame.ANSWERED, b"10")] and not left.said and late.outcomes == [EXPIRED]


def test_records_of_another_generation_are_dropped(lone: Lone) -> None:
    desk = lone.desk
    stale = frame.DESCRIPTOR.pack(desk.dispatch.table.free[-1], 4_000_000_000, 7, frame.JSON, 0, 0)
    os.write(desk.pipes.queue.write, stale)
    assert desk.answer({"n": 6}) == (frame.ANSWERED, b"60")
    assert desk.all_free() and len(desk.dispatch.table.free) == SLOTS


def test_sigterm_finishes_the_claimed_request_and_claims_no_more(lone: Lone) -> None:
    desk = lone.desk
    busy = desk.submit({"do": "sleep", "seconds": 0.2, "n": 7})
    desk.until(desk.cells)
    for number in range(5):
        desk.submit({"n": number})
    desk.turn(0)
    assert lone.end(signal.SIGTERM) == 0
    desk.until(lambda: busy.said)
    assert busy.said == [(frame.ANSWERED, b"70")]
    assert desk.dispatch.queued() == 5 and not desk.cells()
    lone.order()
    desk.until(desk.all_free)


def test_sigterm_ends_an_idle_replica_at_once(lone: Lone) -> None:
    lone.warm_up()
    assert lone.end(signal.SIGTERM) == 0


def test_a_process_short_of_memory_answers_and_ends(lone: Lone) -> None:
    assert lone.desk.answer({"do": "memory"}) == (frame.RAISED, b"")
    pid, lone.pid = lone.pid, 0
    assert wait_for(pid) == ExitCode.RESOURCES and not lone.desk.cells()


# ---------------------------------------------------------------------- what it had in hand


def test_the_mailbox_of_the_dead_names_its_request(lone: Lone) -> None:
    desk = lone.desk
    caller = desk.submit({"do": "sleep", "seconds": 60})
    desk.until(desk.cells)
    assert lone.end(signal.SIGKILL) == -signal.SIGKILL
    assert desk.cells() == [(caller.slot, frame.JSON, 0, 0)] and not caller.said


def test_the_mailbox_marks_handled_requests(lone: Lone) -> None:
    """Four taken at once; the third is fatal."""
    desk = lone.desk
    lone.warm_up()
    desk.until(lambda: not desk.cells())
    bodies: list[dict[str, Any]] = [{"n": 1}, {"n": 2}, {"do": "die"}, {"n": 4}]
    callers = [desk.submit(body) for body in bodies]
    desk.turn(0)
    pid, lone.pid = lone.pid, 0
    assert wait_for(pid) == -signal.SIGKILL
    desk.turn(0)
    assert [cell[0] for cell in desk.cells()] == [caller.slot for caller in callers]
    assert [cell[3] for cell in desk.cells()] == [frame.HANDLED, frame.HANDLED, 0, 0]
    assert not any(caller.said for caller in callers), "what was handled had not been reported"


# ---------------------------------------------------------------------- with the pool


class Staff:
    """The pool over a desk, with the supervisor's turn in a few lines."""

    def __init__(self, desk: Desk, replicas: int, replay: str = "once") -> None:
        config = Config(replicas=ReplicaSettings(replicas=replicas, replay=replay))
        plan = capacity.CapacityPlan(replicas, 1, (None,) * replicas, "")
        spec = desk.spec(slots.MAX_CLAIM if replay == "once" else 1)
        quarantine = Quarantine(desk.pipes.memory, desk.artifact.parent / "kept", 60.0, 1 << 20)
        self.desk = desk
        self.said: list[Event] = []
        self.pool = ReplicaPool(PoolContext(config, plan, spec, desk.pipes, quarantine, self.said.append))

    def turn(self) -> None:
        now = time.monotonic()
        for report in self.desk.turn(0.005):
            self.pool.hear(report, now)
        for replica in self.pool.replicas:
            if replica.pid:
                status = reaped(replica.pid)
                if status is not None:
                    self.pool.died(replica.pid, status, now)
        self.pool.step(now)

    def until(self, done: Callable[[], object], patience: float = 20.0) -> None:
        eventually(done, lambda: self.said[-5:], patience, self.turn)

    def close(self) -> None:
        pids = [replica.pid for replica in self.pool.replicas if replica.pid]
        self.pool.leave(signal.SIGKILL, time.monotonic())
        for pid in pids:
            wait_for(pid)
        if pid := self.pool.fork_server.pid:
            self.pool.fork_server.kill()
            self.pool.fork_server.ended(os.waitpid(pid, 0)[1])
        self.pool.memory.close()


@contextmanager
def staffed(tmp_path: Path, replicas: int, replay: str = "once") -> Iterator[Staff]:
    with ExitStack() as stack:
        desk = stack.enter_context(open_desk(tmp_path, replicas))
        staff = Staff(desk, replicas, replay)
        stack.callback(staff.close)
        staff.pool.start(time.monotonic())
        staff.until(staff.pool.settled)
        yield staff


def test_only_the_fatal_request_of_a_batch_is_refused(tmp_path: Path) -> None:
    with staffed(tmp_path, 1) as staff:
        desk = staff.desk
        for _ in range(40):
            callers = [desk.submit({"n": 1}) for _ in range(32)]
            staff.until(partial(all_heard, callers))
        bodies: list[dict[str, Any]] = [{"n": 1}, {"n": 2}, {"do": "die"}, {"n": 4}]
        callers = [desk.submit(body) for body in bodies]
        staff.until(partial(all_heard, callers))
        answered = frame.ANSWERED
        assert [caller.said for caller in callers] == [
            [(answered, b"10")], [(answered, b"20")], [(frame.REFUSED, b"")], [(answered, b"40")]
        ]  # fmt: skip
        assert staff.pool.replicas[0].restarts == 2
        (kept,) = (tmp_path / "kept").iterdir()
        assert json.loads(kept.read_bytes()) == {"do": "die"}
        staff.until(desk.all_free)


def test_without_replay_the_first_death_is_final(tmp_path: Path) -> None:
    with staffed(tmp_path, 1, replay="never") as staff:
        callers = [staff.desk.submit(body) for body in ({"do": "die"}, {"n": 2})]
        staff.until(partial(all_heard, callers))
        assert [caller.said for caller in callers] == [[(frame.REFUSED, b"")], [(frame.ANSWERED, b"20")]]
        assert staff.desk.dispatch.replayed == 0 and staff.pool.replicas[0].restarts == 1


@pytest.mark.parametrize(("seed", "replay"), [(1, "once"), (2, "once"), (3, "never")])
def test_random_kills_lose_nothing_and_answer_nothing_twice(tmp_path: Path, seed: int, replay: str) -> None:
    """Thousands of requests, a replica killed every few milliseconds, at any point of its loop."""
    chance = random.Random(seed)
    with staffed(tmp_path, 3, replay) as staff:
        desk = staff.desk
        asked: dict[int, Heard] = {}
        waiting: list[Heard] = []
        killed: set[int] = set()
        kill_at, end = time.monotonic() + 0.1, time.monotonic() + 1.5
        while waiting or time.monotonic() < end:
            waiting = [caller for caller in waiting if not caller.said]
            while desk.dispatch.table.admits() and time.monotonic() < end:
                body: dict[str, Any] = {"n": len(asked)}
                if chance.random() < 0.01:
                    body.update(do="sleep", seconds=0.003)
                asked[len(asked)] = caller = desk.submit(body)
                waiting.append(caller)
            staff.turn()
            now = time.monotonic()
            # One that was killed stays ready until the pool has heard of its end.
            pids = [replica.pid for replica in staff.pool.replicas if replica.state == State.READY]
            pids = [pid for pid in pids if pid not in killed]
            if kill_at < now < end and pids:
                killed.add(pid := chance.choice(pids))
                os.kill(pid, signal.SIGKILL)
                kill_at = now + chance.uniform(0.0, 0.04)
            assert now < end + 20, f"{len(waiting)} requests are lost"
        outcomes = [caller.outcomes for caller in asked.values()]
        assert all(len(heard) == 1 for heard in outcomes)
        refused = sum(heard == [frame.REFUSED] for heard in outcomes)
        for number, caller in asked.items():
            assert caller.said[0] in ((frame.ANSWERED, b"%d" % (number * 10)), (frame.REFUSED, b""))
        kills = len(killed)
        assert kills >= 10 and len(asked) > 1000
        assert refused <= (kills if replay == "never" else kills // 2)
        assert sum(replica.restarts for replica in staff.pool.replicas) >= kills - 3
        staff.until(desk.all_free)
        assert desk.dispatch.queued() == 0 and not any(desk.cells(index) for index in range(3))
