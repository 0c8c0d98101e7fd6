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

from tests.support.dispatch_harness import ManualLoop, RecordingCaller, open_channels, queue_pipes
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
class FrontDriver:
    """A front's dispatch over fresh channels, and the reports of its replicas."""

    pipes: Channels
    artifact: Path
    dispatch: Dispatch
    turns: ManualLoop = field(default_factory=ManualLoop)
    reports: list[Report] = field(default_factory=list)
    partial: bytes = b""

    def spec(self, claim: int = slots.MAX_CLAIM) -> ForkServerSpec:
        return ForkServerSpec(
            python=Path(sys.executable), variables=os.environ, artifact=self.artifact, preload="none",
            threads=1, claim=claim, source="test", sample=None,
        )  # fmt: skip

    def submit(self, body: bytes | dict[str, Any], kind: int = frame.JSON) -> RecordingCaller:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        slot = self.dispatch.table.take()
        assert slot is not None
        caller = RecordingCaller(self.dispatch, slot=slot)
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
def open_driver(tmp_path: Path, replicas: int = 1, timeout: float = 60.0) -> Iterator[FrontDriver]:
    artifact = tmp_path / "artifact"
    artifact.mkdir(exist_ok=True)
    (artifact / "score.py").write_text(SCORE)
    with open_channels(SLOTS, 65536, 65536, replicas=replicas) as pipes:
        front = FrontDriver(
            pipes, artifact, Dispatch(pipes.memory, pipes.layout, 0, queue_pipes(pipes), timeout)
        )
        front.turns.start(front.dispatch)
        yield front


def all_answered(callers: list[RecordingCaller]) -> bool:
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
class SingleReplica:
    """One replica without a pool: nobody settles what it leaves behind."""

    front: FrontDriver
    fork_server: ForkServerProcess
    pid: int = 0

    def order(self) -> None:
        before = len(self.front.reports)
        assert self.fork_server.order(0, False, {"TWOFOLD_REPLICA": "0"})
        self.front.until(lambda: self.front.ready(before))
        (ready,) = self.front.ready(before)
        self.pid = ready.pid

    def warm_up(self) -> None:
        """So many short predicts that it dares to take several at once."""
        for _ in range(40):
            callers = [self.front.submit({"n": 1}) for _ in range(32)]
            self.front.until(partial(all_answered, callers))

    def end(self, number: int) -> int:
        pid, self.pid = self.pid, 0
        os.kill(pid, number)
        return wait_for(pid)


@pytest.fixture
def single(tmp_path: Path) -> Iterator[SingleReplica]:
    with open_driver(tmp_path) as front:
        made = SingleReplica(front, ForkServerProcess(front.pipes, front.spec()))
        try:
            made.order()
            yield made
        finally:
            if made.pid:
                made.end(signal.SIGKILL)
            made.fork_server.kill()
            made.fork_server.ended(os.waitpid(made.fork_server.pid, 0)[1])


# ---------------------------------------------------------------------- what it answers


def test_outcomes(single: SingleReplica) -> None:
    front = single.front
    assert front.answer({"n": 4}) == (frame.ANSWERED, b"40")
    assert front.answer(b"\0\xff", frame.BYTES) == (frame.ANSWERED, b'{"bytes":2}')
    outcome, reason = front.answer(b"{no json}")
    assert outcome == frame.MALFORMED and reason
    assert front.answer({"do": "raise"}) == (frame.RAISED, b"")
    assert front.answer({"do": "exit"}) == (frame.RAISED, b"")
    assert front.answer({"do": "big", "size": 65536 - 2})[0] == frame.ANSWERED, (
        "two quotes make it fit exactly"
    )
    assert front.answer({"do": "big", "size": 65536 - 1}) == (frame.TOO_LARGE, b"")
    assert front.answer({"n": 5}) == (frame.ANSWERED, b"50"), "all of that by one process"
    log = os.read(front.pipes.predict_log.read, 65536).decode()
    assert "said to the log" in log and "request-1" in log and "max_answer_mb" in log
    front.until(lambda: not front.cells())
    assert front.all_free()
    served = slots.REPLICA_WORDS.unpack_from(front.pipes.memory, slots.REPLICA_WORDS_OFFSET)[0]
    assert served == 8


def test_a_replica_is_a_process_of_its_own(single: SingleReplica) -> None:
    assert os.getpgid(single.pid) == single.pid
    status = Path(f"/proc/{single.pid}/status").read_text()
    assert f"PPid:\t{os.getpid()}\n" in status
    assert Path(f"/proc/{single.pid}/oom_score_adj").read_text() == "500\n"


def test_cancelled_and_expired_requests_are_skipped(single: SingleReplica) -> None:
    front = single.front
    blocker = front.submit({"do": "sleep", "seconds": 0.05, "n": 1})
    left = front.submit({"n": 2})
    front.dispatch.cancel(left, left.slot)
    front.dispatch.timeout_ns = 1_000
    late = front.submit({"n": 3})
    front.until(lambda: blocker.said and front.all_free())
    assert blocker.said == [(frame.ANSWERED, b"10")] and not left.said and late.outcomes == [EXPIRED]


def test_records_of_another_generation_are_dropped(single: SingleReplica) -> None:
    front = single.front
    stale = frame.DESCRIPTOR.pack(front.dispatch.table.free[-1], 4_000_000_000, 7, frame.JSON, 0, 0)
    os.write(front.pipes.queue.write, stale)
    assert front.answer({"n": 6}) == (frame.ANSWERED, b"60")
    assert front.all_free() and len(front.dispatch.table.free) == SLOTS


def test_sigterm_finishes_the_claimed_request_and_claims_no_more(single: SingleReplica) -> None:
    front = single.front
    busy = front.submit({"do": "sleep", "seconds": 0.2, "n": 7})
    front.until(front.cells)
    for number in range(5):
        front.submit({"n": number})
    front.turn(0)
    assert single.end(signal.SIGTERM) == 0
    front.until(lambda: busy.said)
    assert busy.said == [(frame.ANSWERED, b"70")]
    assert front.dispatch.queued() == 5 and not front.cells()
    single.order()
    front.until(front.all_free)


def test_sigterm_ends_an_idle_replica_at_once(single: SingleReplica) -> None:
    single.warm_up()
    assert single.end(signal.SIGTERM) == 0


def test_a_process_short_of_memory_answers_and_ends(single: SingleReplica) -> None:
    assert single.front.answer({"do": "memory"}) == (frame.RAISED, b"")
    pid, single.pid = single.pid, 0
    assert wait_for(pid) == ExitCode.RESOURCES and not single.front.cells()


# ---------------------------------------------------------------------- what it had in hand


def test_the_mailbox_of_the_dead_names_its_request(single: SingleReplica) -> None:
    front = single.front
    caller = front.submit({"do": "sleep", "seconds": 60})
    front.until(front.cells)
    assert single.end(signal.SIGKILL) == -signal.SIGKILL
    assert front.cells() == [(caller.slot, frame.JSON, 0, 0)] and not caller.said


def test_the_mailbox_marks_handled_requests(single: SingleReplica) -> None:
    """Four taken at once; the third is fatal."""
    front = single.front
    single.warm_up()
    front.until(lambda: not front.cells())
    bodies: list[dict[str, Any]] = [{"n": 1}, {"n": 2}, {"do": "die"}, {"n": 4}]
    callers = [front.submit(body) for body in bodies]
    front.turn(0)
    pid, single.pid = single.pid, 0
    assert wait_for(pid) == -signal.SIGKILL
    front.turn(0)
    assert [cell[0] for cell in front.cells()] == [caller.slot for caller in callers]
    assert [cell[3] for cell in front.cells()] == [frame.HANDLED, frame.HANDLED, 0, 0]
    assert not any(caller.said for caller in callers), "what was handled had not been reported"


# ---------------------------------------------------------------------- with the pool


class PoolDriver:
    """The pool over a front, with the supervisor's turn in a few lines."""

    def __init__(self, front: FrontDriver, replicas: int, replay: str = "once") -> None:
        config = Config(replicas=ReplicaSettings(replicas=replicas, replay=replay))
        plan = capacity.CapacityPlan(replicas, 1, (None,) * replicas, "")
        spec = front.spec(slots.MAX_CLAIM if replay == "once" else 1)
        quarantine = Quarantine(front.pipes.memory, front.artifact.parent / "kept", 60.0, 1 << 20)
        self.front = front
        self.said: list[Event] = []
        self.pool = ReplicaPool(PoolContext(config, plan, spec, front.pipes, quarantine, self.said.append))

    def turn(self) -> None:
        now = time.monotonic()
        for report in self.front.turn(0.005):
            self.pool.take_report(report, now)
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
def running_pool(tmp_path: Path, replicas: int, replay: str = "once") -> Iterator[PoolDriver]:
    with ExitStack() as stack:
        front = stack.enter_context(open_driver(tmp_path, replicas))
        driver = PoolDriver(front, replicas, replay)
        stack.callback(driver.close)
        driver.pool.start(time.monotonic())
        driver.until(driver.pool.settled)
        yield driver


def test_only_the_fatal_request_of_a_batch_is_refused(tmp_path: Path) -> None:
    with running_pool(tmp_path, 1) as driver:
        front = driver.front
        for _ in range(40):
            callers = [front.submit({"n": 1}) for _ in range(32)]
            driver.until(partial(all_answered, callers))
        bodies: list[dict[str, Any]] = [{"n": 1}, {"n": 2}, {"do": "die"}, {"n": 4}]
        callers = [front.submit(body) for body in bodies]
        driver.until(partial(all_answered, callers))
        answered = frame.ANSWERED
        assert [caller.said for caller in callers] == [
            [(answered, b"10")], [(answered, b"20")], [(frame.REFUSED, b"")], [(answered, b"40")]
        ]  # fmt: skip
        assert driver.pool.replicas[0].restarts == 2
        (kept,) = (tmp_path / "kept").iterdir()
        assert json.loads(kept.read_bytes()) == {"do": "die"}
        driver.until(front.all_free)


def test_without_replay_the_first_death_is_final(tmp_path: Path) -> None:
    with running_pool(tmp_path, 1, replay="never") as driver:
        callers = [driver.front.submit(body) for body in ({"do": "die"}, {"n": 2})]
        driver.until(partial(all_answered, callers))
        assert [caller.said for caller in callers] == [[(frame.REFUSED, b"")], [(frame.ANSWERED, b"20")]]
        assert driver.front.dispatch.replayed == 0 and driver.pool.replicas[0].restarts == 1


@pytest.mark.parametrize(("seed", "replay"), [(1, "once"), (2, "once"), (3, "never")])
def test_random_kills_lose_nothing_and_answer_nothing_twice(tmp_path: Path, seed: int, replay: str) -> None:
    """Thousands of requests, a replica killed every few milliseconds, at any point of its loop."""
    chance = random.Random(seed)
    with running_pool(tmp_path, 3, replay) as driver:
        front = driver.front
        asked: dict[int, RecordingCaller] = {}
        waiting: list[RecordingCaller] = []
        killed: set[int] = set()
        kill_at, end = time.monotonic() + 0.1, time.monotonic() + 1.5
        while waiting or time.monotonic() < end:
            waiting = [caller for caller in waiting if not caller.said]
            while front.dispatch.table.admits() and time.monotonic() < end:
                body: dict[str, Any] = {"n": len(asked)}
                if chance.random() < 0.01:
                    body.update(do="sleep", seconds=0.003)
                asked[len(asked)] = caller = front.submit(body)
                waiting.append(caller)
            driver.turn()
            now = time.monotonic()
            # One that was killed stays ready until the pool has heard of its end.
            pids = [replica.pid for replica in driver.pool.replicas if replica.state == State.READY]
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
        assert sum(replica.restarts for replica in driver.pool.replicas) >= kills - 3
        driver.until(front.all_free)
        assert front.dispatch.queued() == 0 and not any(front.cells(index) for index in range(3))
