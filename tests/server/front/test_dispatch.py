"""A front's slots over real memory and pipes: replicas, supervisor, clock and loop are the test's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.dispatch_harness import (
    SECOND,
    Claim,
    Clock,
    FakeReplicas,
    ManualLoop,
    RecordingCaller,
    open_channels,
    queue_pipes,
)
from twofold.server.front import slot_table
from twofold.server.front.dispatch import EXPIRED, QUARANTINED, Dispatch
from twofold.server.replica import frame, slots
from twofold.server.supervision.channels import Channels
from twofold.server.supervision.quarantine import Quarantine

TIMEOUT = 10.0
SLOTS = 4


@dataclass
class Rig:
    pipes: Channels
    clock: Clock
    turns: ManualLoop
    dispatch: Dispatch
    replicas: FakeReplicas

    def submit(self, body: bytes = b"[1]", kind: int = frame.JSON) -> tuple[RecordingCaller, int]:
        slot = self.dispatch.table.take()
        assert slot is not None
        caller = RecordingCaller(self.dispatch)
        self.dispatch.table.body(slot, len(body))[:] = body
        self.dispatch.submit(caller, slot, len(body), kind, b"ID")
        return caller, slot

    def claim(self) -> Claim:
        self.turns.turn()
        claim = self.replicas.claim()
        assert claim is not None
        return claim

    def successor(self) -> Dispatch:
        """The next front, after this one was killed."""
        return Dispatch(self.pipes.memory, self.pipes.layout, 0, queue_pipes(self.pipes), TIMEOUT)

    def all_free(self) -> bool:
        return sorted(self.dispatch.table.free) == list(range(self.pipes.layout.slots_per_front))


def make_rig(stack: ExitStack, count: int = SLOTS, size: int = 4096) -> Rig:
    pipes, clock, turns = stack.enter_context(open_channels(count, size, size)), Clock(), ManualLoop()
    stack.enter_context(clock.installed())
    made = Dispatch(pipes.memory, pipes.layout, 0, queue_pipes(pipes), TIMEOUT)
    turns.start(made)
    return Rig(pipes, clock, turns, made, FakeReplicas(pipes, clock.monotonic_ns))


@pytest.fixture
def rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        yield make_rig(stack)


# ---------------------------------------------------------------------- one request at a time


def test_a_request_goes_out_and_its_answer_comes_back_once(rig: Rig) -> None:
    caller, _ = rig.submit(b'{"a": 1}')
    claim = rig.claim()
    assert (claim.body, claim.kind, claim.attempt) == (b'{"a": 1}', frame.JSON, 0)
    assert len(rig.dispatch.pending) == 1 and not caller.said
    rig.replicas.complete(claim, frame.ANSWERED, b"[2]")
    rig.turns.turn()
    assert caller.said == [(frame.ANSWERED, b"[2]")]
    assert not rig.dispatch.pending and rig.all_free()


def test_the_request_id_lies_in_the_slot_and_leaves_nothing_of_a_longer_one(rig: Rig) -> None:
    for request_id in (b"A" * slots.MAX_REQUEST_ID, b"B" * 3):
        slot = rig.dispatch.table.take()
        assert slot is not None
        rig.dispatch.submit(RecordingCaller(rig.dispatch), slot, 0, frame.JSON, request_id)
        start = rig.pipes.layout.slot(slot) + slots.REQUEST_ID_OFFSET
        lying = rig.pipes.memory[start : start + slots.MAX_REQUEST_ID]
        assert lying == request_id.ljust(slots.MAX_REQUEST_ID, b"\0")
        rig.replicas.complete(rig.claim(), frame.ANSWERED)
        rig.turns.turn()


def test_what_one_turn_hands_in_leaves_in_order_and_whole() -> None:
    with ExitStack() as stack:
        rig = make_rig(stack, count=700)  # more than two writes of PIPE_BUF
        for number in range(700):
            rig.submit(b"%d" % number)
        assert rig.dispatch.queued() == 0, "nothing is written before the turn ends"
        rig.turns.turn()
        assert rig.dispatch.queued() == 700
        assert [rig.claim().body for _ in range(700)] == [b"%d" % number for number in range(700)]


def test_no_slot_is_given_when_all_are_taken_or_nobody_serves(rig: Rig) -> None:
    taken = [rig.dispatch.table.take() for _ in range(SLOTS)]
    assert len({*taken}) == SLOTS and rig.dispatch.table.take() is None and not rig.dispatch.table.admits()
    rig.dispatch.table.release(taken[0] or 0)
    assert rig.dispatch.table.admits()
    slots.CONTROL.pack_into(rig.pipes.memory, slots.UNAVAILABLE, 1)
    table = rig.dispatch.table
    assert table.take() is None and table.unavailable and not table.admits()


def test_slow_bodies_leave_a_quarter_of_the_slots_to_the_quick(rig: Rig) -> None:
    assert sum(rig.dispatch.table.take_large() is not None for _ in range(SLOTS)) == SLOTS * 3 // 4
    assert rig.dispatch.table.take() is not None


def test_a_caller_that_left_is_skipped_and_hears_nothing(rig: Rig) -> None:
    caller, slot = rig.submit()
    rig.turns.turn()
    rig.dispatch.cancel(caller, slot)
    assert not rig.dispatch.pending and not rig.all_free(), "its descriptor is still under way"
    claim = rig.claim()
    assert claim.skip
    rig.replicas.complete(claim, frame.ANSWERED)
    rig.turns.turn()
    assert not caller.said and rig.all_free()


def test_only_the_slots_own_caller_can_cancel_it(rig: Rig) -> None:
    caller, slot = rig.submit()
    rig.dispatch.cancel(RecordingCaller(rig.dispatch), slot)
    claim = rig.claim()
    assert not claim.skip
    rig.replicas.complete(claim, frame.ANSWERED)
    rig.turns.turn()
    assert caller.outcomes == [frame.ANSWERED]


def test_an_answer_after_the_deadline_reaches_nobody_and_frees_the_slot(rig: Rig) -> None:
    caller, slot = rig.submit()
    claim = rig.claim()
    rig.clock.ns += int(TIMEOUT * SECOND) - 1
    rig.dispatch.tick()
    assert not caller.said
    rig.clock.ns += 2
    rig.dispatch.tick()
    rig.dispatch.tick()
    assert caller.outcomes == [EXPIRED]
    assert slot not in rig.dispatch.table.free, "the replica may still write into it"
    rig.replicas.complete(claim, frame.ANSWERED, b"too late")
    rig.turns.turn()
    assert caller.outcomes == [EXPIRED] and rig.all_free()


def test_a_replica_that_claims_past_the_deadline_makes_it_expire(rig: Rig) -> None:
    caller, _ = rig.submit()
    rig.turns.turn()
    rig.clock.ns += int(TIMEOUT * SECOND) + 1
    claim = rig.claim()
    rig.replicas.complete(claim, frame.ANSWERED)
    rig.turns.turn()
    assert caller.outcomes == [EXPIRED] and rig.all_free()


def test_a_death_offers_the_body_once_more_and_a_second_one_is_final(rig: Rig) -> None:
    caller, _ = rig.submit(b"[7]", frame.BYTES)
    rig.replicas.report_death(rig.claim(), frame.RETRY)
    rig.turns.turn()
    assert rig.dispatch.replayed == 1 and not caller.said
    again = rig.claim()
    assert (again.body, again.kind, again.attempt) == (b"[7]", frame.BYTES, 1)
    rig.replicas.report_death(again, frame.REFUSED)
    rig.turns.turn()
    assert caller.outcomes == [frame.REFUSED] and rig.all_free()


def test_a_death_in_a_request_that_nobody_waits_for_is_not_replayed(rig: Rig) -> None:
    caller, slot = rig.submit()
    claim = rig.claim()
    rig.dispatch.cancel(caller, slot)
    rig.replicas.report_death(claim, frame.RETRY)
    rig.turns.turn()
    assert rig.dispatch.replayed == 0 and rig.all_free() and rig.replicas.claim() is None


class Keeper(RecordingCaller):
    """A caller that sends its answer from the slot, and so keeps it for a while."""

    def answered(self, slot: int, size: int, outcome: int, *spent: int) -> None:
        self.slot = slot
        self.said.append((outcome, bytes(self.dispatch.table.answer(slot, size))))


@pytest.mark.parametrize("verdict", [frame.RETRY, frame.REFUSED])
def test_a_death_after_the_completion_does_not_free_a_slot_that_is_being_sent(rig: Rig, verdict: int) -> None:
    """A replica may be killed between its completion and the clearing of its mailbox."""
    slot = rig.dispatch.table.take()
    assert slot is not None
    keeper = Keeper(rig.dispatch)
    rig.dispatch.submit(keeper, slot, 3, frame.JSON, b"")
    claim = rig.claim()
    rig.replicas.complete(claim, frame.ANSWERED, b"[1]")
    rig.replicas.report_death(claim, verdict)
    rig.turns.turn()
    assert keeper.outcomes == [frame.ANSWERED]
    assert slot not in rig.dispatch.table.free
    rig.dispatch.table.release(slot)
    assert rig.all_free()


def test_the_generation_goes_round_without_a_zero(rig: Rig) -> None:
    """Zero is what a slot says that was never used."""
    rig.dispatch.generations[rig.dispatch.table.free[-1]] = slot_table.GENERATION_MASK
    caller, slot = rig.submit()
    rig.replicas.complete(rig.claim(), frame.ANSWERED)
    rig.turns.turn()
    assert caller.outcomes == [frame.ANSWERED] and rig.dispatch.generations[slot] == 1
    slots.SLOT_HEADER.pack_into(
        rig.pipes.memory, rig.pipes.layout.slot(slot), slot_table.GENERATION_MASK, slots.DONE, 0, 0, 0, 0
    )
    assert rig.successor().generations[slot] == 1


def test_a_quarantined_body_is_refused_without_a_replica(rig: Rig, tmp_path: Path) -> None:
    quarantine = Quarantine(rig.pipes.memory, tmp_path, 5.0, 1 << 20)
    quarantine.add(b"poison", rig.clock.ns)
    refused, _ = rig.submit(b"poison")
    served, _ = rig.submit(b"medicine")
    assert not refused.said, "a caller hears of it in a later turn, never within submit()"
    rig.turns.turn()
    assert refused.outcomes == [QUARANTINED]
    claim = rig.claim()
    assert claim.body == b"medicine"
    rig.replicas.complete(claim, frame.ANSWERED)
    rig.turns.turn()
    assert served.outcomes == [frame.ANSWERED] and rig.all_free()
    rig.clock.ns += 5 * SECOND
    rig.submit(b"poison")
    assert rig.claim().body == b"poison", "the sentence is served"


# ---------------------------------------------------------------------- a killed predecessor


def test_a_successor_waits_for_slots_that_are_still_in_use(rig: Rig) -> None:
    lost, busy = rig.submit(b"busy")
    held = rig.claim()
    done, finished = rig.submit(b"done")
    rig.turns.turn()
    rig.submit(b"queued")
    rig.turns.turn()
    rig.replicas.complete(rig.claim(), frame.ANSWERED)  # and the front is killed before it reads this

    rig.dispatch = rig.successor()
    rig.turns = ManualLoop()
    rig.turns.start(rig.dispatch)
    assert finished in rig.dispatch.table.free and len(rig.dispatch.table.free) == SLOTS - 2
    queued = rig.claim()
    assert queued.skip, "nobody waits for it any more"
    rig.replicas.complete(queued, frame.ANSWERED)
    rig.replicas.complete(held, frame.ANSWERED, b"late")
    rig.turns.turn()
    assert rig.all_free() and busy in rig.dispatch.table.free
    assert not lost.said and not done.said


def test_a_slot_whose_replica_never_reports_comes_back_after_its_deadline(rig: Rig) -> None:
    rig.submit()
    claim = rig.claim()
    rig.dispatch = rig.successor()
    assert not rig.all_free()
    rig.clock.ns += int(TIMEOUT * SECOND) + slot_table.ABANDONED_NS
    rig.dispatch.tick()
    assert not rig.all_free()
    rig.clock.ns += 1
    rig.dispatch.tick()
    assert rig.all_free()
    assert rig.dispatch.generations[claim.slot] != claim.generation
    assert len(rig.successor().table.free) == SLOTS, "the next one knows too"


def test_a_first_front_finds_everything_free_and_only_its_own() -> None:
    with open_channels(count=6, fronts=2) as pipes:
        second = Dispatch(pipes.memory, pipes.layout, 1, queue_pipes(pipes, 1), TIMEOUT)
        assert sorted(second.table.free) == [3, 4, 5] and set(second.generations) == {3, 4, 5}


# ---------------------------------------------------------------------- rates and memory


def test_retry_after_is_depth_over_measured_rate_within_a_minute(rig: Rig) -> None:
    assert rig.dispatch.retry_after() == 1, "nothing is known yet"
    for _ in range(4):
        rig.submit()
    rig.dispatch.rate = 2.0
    assert rig.dispatch.retry_after() == 2
    rig.dispatch.rate = 0.01
    assert rig.dispatch.retry_after() == 60
    rig.dispatch.rate = 1e6
    assert rig.dispatch.retry_after() == 1


def test_the_rate_is_measured_in_completions_per_second(rig: Rig) -> None:
    for _ in range(10):
        rig.submit()
        rig.replicas.complete(rig.claim(), frame.ANSWERED)
        rig.turns.turn()
        rig.clock.ns += SECOND // 10
    rig.dispatch.tick()
    assert rig.dispatch.rate == pytest.approx(10)
    for _ in range(20):
        rig.clock.ns += SECOND
        rig.dispatch.tick()
    assert rig.dispatch.rate < 0.01 and rig.dispatch.retry_after() == 1


def blocks(rig: Rig) -> int:
    """Bytes of the memory that exist."""
    return os.fstat(rig.pipes.memory_fd).st_blocks * 512


def test_large_slots_give_their_pages_back_when_they_idle() -> None:
    size = 1 << 20
    with ExitStack() as stack:
        rig = make_rig(stack, count=6, size=size)
        idle = blocks(rig)
        callers = [rig.submit(b"b" * size)[0] for _ in range(6)]
        for _ in callers:
            rig.replicas.complete(rig.claim(), frame.ANSWERED, b"a" * size)
        rig.turns.turn()
        assert blocks(rig) >= 12 * size
        rig.clock.ns += SECOND // 2
        rig.dispatch.tick()
        assert blocks(rig) >= 12 * size, "a busy slot keeps its pages"
        rig.clock.ns += SECOND
        rig.dispatch.tick()
        assert len(rig.dispatch.table.large) == 6 - slot_table.LARGE_PER_TICK, "a tick is short"
        held = rig.dispatch.table.take()
        rig.dispatch.tick()
        assert held is not None and list(rig.dispatch.table.large) == [held], "a slot in use is left alone"
        rig.dispatch.table.release(held)
        rig.dispatch.tick()
        assert blocks(rig) <= idle + 6 * slots.PAGE
        again, _ = rig.submit(b"c" * size)
        rig.replicas.complete(rig.claim(), frame.ANSWERED, b"d" * size)
        rig.turns.turn()
        assert again.said == [(frame.ANSWERED, b"d" * size)]


# ---------------------------------------------------------------------- any interleaving


@dataclass
class Client(RecordingCaller):
    """A caller with a name, which may keep its slot for a while as a large answer does."""

    name: bytes = b""
    keeps: bool = False
    left: bool = False
    keeping: tuple[int, bytes] | None = None

    def answered(self, slot: int, size: int, outcome: int, *spent: int) -> None:
        assert not self.left and not self.said, "a caller hears once, and not after it has left"
        if outcome == frame.ANSWERED:
            payload = bytes(self.dispatch.table.answer(slot, size))
            assert payload == b"answer to " + self.name, "an answer of somebody else"
            if self.keeps:
                self.said.append((outcome, payload))
                self.keeping = slot, payload
                return
        super().answered(slot, size, outcome)

    def let_go(self) -> None:
        assert self.keeping is not None
        slot, payload = self.keeping
        lying = bytes(self.dispatch.table.answer(slot, len(payload)))
        assert lying == payload, "it was overwritten while sent"
        self.keeping = None
        self.dispatch.table.release(slot, len(payload))


class Interleavings(RuleBasedStateMachine):
    """Clients, replicas, the supervisor, the clock and killed fronts, in any order."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.rig = make_rig(self.stack)
        self.clients: list[Client] = []
        self.held: list[Claim] = []
        self.finished: list[Claim] = []  # completed, the mailbox not yet cleared
        self.count = 0

    @rule(keeps=st.booleans())
    def submit(self, keeps: bool) -> None:
        slot = self.rig.dispatch.table.take()
        if slot is None:
            return
        assert all(slot != claim.slot for claim in self.held), "a replica may still write into it"
        self.count += 1
        client = Client(self.rig.dispatch, name=b"client %d" % self.count, keeps=keeps, slot=slot)
        self.rig.dispatch.table.body(slot, len(client.name))[:] = client.name
        self.rig.dispatch.submit(client, slot, len(client.name), frame.JSON, client.name)
        self.clients.append(client)

    @rule()
    def turn(self) -> None:
        self.rig.turns.turn()

    @rule(turn=st.booleans())
    def claim(self, turn: bool) -> None:
        if turn:
            self.rig.turns.turn()
        claim = self.rig.replicas.claim()
        if claim is None:
            return
        assert all(claim.slot != other.slot for other in self.held), "two replicas hold one slot"
        if claim.skip:  # takes a replica no time
            self.rig.replicas.complete(claim, frame.SKIPPED)
            self.finished.append(claim)
        else:
            self.held.append(claim)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), outcome=st.sampled_from([frame.ANSWERED] * 4 + [frame.RAISED, frame.MALFORMED]))
    def complete(self, data: st.DataObject, outcome: int) -> None:
        claim = self._draw(data, self.held)
        self.rig.replicas.complete(claim, outcome, b"answer to " + claim.body)
        self.finished.append(claim)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), refuse=st.booleans())
    def die(self, data: st.DataObject, refuse: bool) -> None:
        claim = self._draw(data, self.held)
        self.rig.replicas.report_death(claim, frame.REFUSED if refuse or claim.attempt else frame.RETRY)

    @precondition(lambda self: self.finished)
    @rule(data=st.data(), verdict=st.sampled_from([frame.RETRY, frame.REFUSED]))
    def die_after_completing(self, data: st.DataObject, verdict: int) -> None:
        """Also stands for any other record that comes too late."""
        self.rig.replicas.report_death(self._draw(data, self.finished), verdict)

    @precondition(lambda self: any(client.keeping for client in self.clients))
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([client for client in self.clients if client.keeping])).let_go()

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        if not client.said:
            client.left = True
            self.rig.dispatch.cancel(client, client.slot)

    @rule(seconds=st.sampled_from([0.1] * 8 + [TIMEOUT / 2, TIMEOUT + 3]))
    def wait(self, seconds: float) -> None:
        self.rig.clock.ns += int(seconds * SECOND)
        now = self.rig.clock.ns
        for claim in list(self.held):  # the supervisor kills what hangs, long before ABANDONED_NS
            header = slots.SLOT_HEADER.unpack_from(
                self.rig.pipes.memory, self.rig.pipes.layout.slot(claim.slot)
            )
            if header[4] < now:
                self.held.remove(claim)
                self.rig.replicas.report_death(claim, frame.REFUSED)
        self.rig.dispatch.tick()

    @rule(rarely=st.sampled_from(range(8)))
    def front_is_killed(self, rarely: int) -> None:
        if rarely:
            return
        for client in self.clients:
            client.left, client.keeping = True, None
        self.rig.turns = ManualLoop()
        self.rig.dispatch = self.rig.successor()
        self.rig.turns.start(self.rig.dispatch)

    @invariant()
    def every_slot_is_in_one_place(self) -> None:
        free, pending = self.rig.dispatch.table.free, set(self.rig.dispatch.pending)
        assert len(free) == len(set(free)) and not pending & set(free)
        assert not set(free) & {client.keeping[0] for client in self.clients if client.keeping}

    def teardown(self) -> None:
        with self.stack:
            for _ in range(3):  # a death on the way costs one more round
                self.rig.turns.turn()
                while (claim := self.rig.replicas.claim()) is not None:
                    self.held.append(claim)
                for claim in self.held:
                    self.rig.replicas.complete(claim, frame.ANSWERED, b"answer to " + claim.body)
                self.held.clear()
                self.rig.turns.turn()
            for client in self.clients:
                if client.keeping:
                    client.let_go()
                assert client.left or len(client.said) == 1, "lost"
            if not self.rig.all_free():
                self.wait(TIMEOUT + 3)  # what a killed front had not yet written into the queue
            assert self.rig.all_free()

    @staticmethod
    def _draw(data: st.DataObject, claims: list[Claim]) -> Claim:
        return claims.pop(data.draw(st.integers(0, len(claims) - 1)))


Interleavings.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestInterleavings = Interleavings.TestCase
