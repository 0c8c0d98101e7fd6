"""A replica's life as the supervisor sees it: legal moves, and how long it waits before the next one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.server.supervision.replica_state import (
    MOVES,
    RESTARTS,
    SHORT_LOAD_S,
    USEFUL_LIFE_S,
    Replica,
    State,
)

EVENTS = sorted({event for moves in MOVES.values() for event in moves})


def test_the_table_names_every_state_and_leads_only_to_states() -> None:
    assert set(MOVES) == set(State)
    assert {state for moves in MOVES.values() for state in moves.values()} <= set(State)


def test_every_life_can_end_and_begin_again() -> None:
    for state in State:
        reached, edge = {state}, [state]
        while edge:
            edge = [new for old in edge for new in MOVES[old].values() if new not in reached]
            reached.update(edge)
        assert {State.ABSENT, State.LOADING, State.READY} <= reached, state


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
@settings(derandomize=True, database=None)
def test_a_move_is_in_the_table_or_loud(events: list[str]) -> None:
    replica = Replica(0)
    for now, event in enumerate(events):
        before = replica.state, replica.since_s
        if event in MOVES[replica.state]:
            replica.move(event, float(now))
            assert (replica.state, replica.since_s) == (MOVES[before[0]][event], now)
        else:
            with pytest.raises(KeyError):
                replica.move(event, float(now))
            assert (replica.state, replica.since_s) == before


def loaded(replica: Replica, now: float) -> Replica:
    replica.order(now)
    replica.pid = 77
    replica.move("ready", now)
    return replica


def test_the_first_death_costs_nothing_and_each_further_one_twice_the_last() -> None:
    replica, now, delays = Replica(0), 100.0, []
    for _ in range(12):
        loaded(replica, now)
        replica.die("killed", useful=False, now_s=now + 1)
        delays.append(replica.retry_at_s - (now + 1))
        now = replica.retry_at_s
    assert delays[:5] == pytest.approx([0, 0.25, 0.5, 1, 2])
    assert delays[-1] == 30 and delays == sorted(delays)


def test_a_crash_loop_of_months_keeps_its_delay() -> None:
    replica = loaded(Replica(0, failures=1_000_000), 100.0)
    replica.die("killed", useful=False, now_s=101.0)
    assert replica.retry_at_s == 101.0 + RESTARTS.most_s


@pytest.mark.parametrize(("age", "useful", "failures"), [
    (1.0, False, 4), (1.0, True, 1), (USEFUL_LIFE_S + 1, False, 1), (USEFUL_LIFE_S, False, 4),
])  # fmt: skip
def test_a_useful_or_a_long_life_begins_the_count_again(age: float, useful: bool, failures: int) -> None:
    replica = loaded(Replica(0, failures=3), 100.0)
    replica.die("killed", useful=useful, now_s=100.0 + age)
    assert replica.failures == failures


def test_a_long_load_is_no_life() -> None:
    replica = Replica(0, failures=3)
    replica.order(100.0)
    replica.die("the model did not load", useful=False, now_s=100.0 + 10 * USEFUL_LIFE_S)
    assert replica.failures == 4 and replica.state == State.BACKOFF


def test_a_death_leaves_nothing_of_the_old_life() -> None:
    replica = loaded(Replica(0), 100.0)
    replica.cause, replica.aborted_at_s = "predict() hung", 101.0
    replica.die("predict() hung", useful=True, now_s=102.0)
    assert (replica.pid, replica.cause, replica.aborted_at_s) == (0, "", 0.0)
    assert (replica.reason, replica.restarts, replica.state) == ("predict() hung", 1, State.BACKOFF)


@pytest.mark.parametrize(
    ("state", "failures", "load_s", "ever_ready", "soon"),
    [
        (State.ABSENT, 0, 0.0, True, False),
        (State.LOADING, 0, 1.0, True, True),
        (State.LOADING, 0, 0.0, False, False),  # the first load of all may fail
        (State.LOADING, 0, SHORT_LOAD_S, True, False),
        (State.LOADING, 2, 1.0, True, False),
        (State.READY, 9, 100.0, True, True),
        (State.SPARE, 0, 1.0, True, False),
        (State.BACKOFF, 1, 1.0, True, True),
        (State.BACKOFF, 2, 1.0, True, False),
        (State.BACKOFF, 1, SHORT_LOAD_S, True, False),
        (State.LEAVING, 0, 1.0, True, False),
    ],
)
def test_a_request_is_queued_only_for_a_replica_that_serves_soon(
    state: State, failures: int, load_s: float, ever_ready: bool, soon: bool
) -> None:
    assert Replica(0, state=state, failures=failures, load_s=load_s).serves_soon(ever_ready) is soon
