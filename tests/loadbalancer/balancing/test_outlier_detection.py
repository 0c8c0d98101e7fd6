from __future__ import annotations

import pytest

from twofold.loadbalancer.balancing.outlier_detection import (
    EJECTION_NS,
    FORGIVEN_NS,
    LONGEST_NS,
    SECOND_NS,
    Failure,
    OutlierRecord,
    may_eject,
)


@pytest.mark.parametrize(
    ("failure", "enough"),
    [
        (Failure.ANSWER, 5),
        (Failure.BROKEN, 5),
        (Failure.CONNECT, 3),
        (Failure.LATE, 3),
        (Failure.REFUSED, 1),
    ],
)
def test_consecutive_failures_eject(failure: Failure, enough: int) -> None:
    record = OutlierRecord()
    assert [record.condemns(failure) for _ in range(enough)] == [False] * (enough - 1) + [True]


def test_a_success_resets_the_counts() -> None:
    record = OutlierRecord()
    for _ in range(10):
        assert not any(record.condemns(Failure.ANSWER) for _ in range(4))
        assert not record.acquit()


def test_broken_answers_and_5xx_are_counted_together() -> None:
    record = OutlierRecord()
    kinds = [Failure.ANSWER, Failure.BROKEN] * 2
    assert not any(record.condemns(kind) for kind in kinds)
    assert record.condemns(Failure.BROKEN)


def test_each_ejection_is_longer_up_to_a_minute() -> None:
    record, now, lengths = OutlierRecord(), 100 * SECOND_NS, []
    for _ in range(14):
        record.eject(now, False)
        lengths.append(record.until_ns - now)
        assert not record.expire(record.until_ns - 1)
        now = record.until_ns
        assert record.expire(now) and not record.expire(now)
        assert record.condemns(Failure.ANSWER)  # on trial one failure is enough
    assert lengths == [min(EJECTION_NS * count, LONGEST_NS) for count in range(1, 15)]


def test_a_minute_without_failures_resets_the_ejection_time() -> None:
    record = OutlierRecord()
    record.eject(0, False)
    record.expire(record.until_ns)
    assert record.acquit() and not record.on_trial
    record.eject(record.until_ns + FORGIVEN_NS, False)
    assert record.count == 2
    record.acquit()
    record.eject(record.until_ns + FORGIVEN_NS + 1, False)
    assert record.count == 1 and record.ejections == 3


def records(*rows: int) -> list[OutlierRecord]:
    made = []
    for row in rows:
        record = OutlierRecord()
        record.rows[Failure.ANSWER] = row
        made.append(record)
    return made


def test_at_most_half_of_the_pool_and_never_the_last() -> None:
    assert may_eject(records(0, 0, 0), 4)
    assert may_eject(records(0, 0), 4)
    assert not may_eject(records(0), 4)
    assert may_eject(records(0), 2)
    assert not may_eject(records(), 1)
    assert not may_eject(records(), 0)
    assert not may_eject(records(0), 3)


def test_no_instance_is_ejected_for_failures_that_most_others_share() -> None:
    assert may_eject(records(5, 0, 0), 4)
    assert not may_eject(records(4, 2, 0), 4)
    assert not may_eject(records(4), 2)
