"""Plans by the bytes of their heads: bounded in number, and in what one may take."""

from __future__ import annotations

from twofold.wire.head_memo import MAX_HEAD, MAX_PLANS, HeadMemo


def test_it_stays_bounded() -> None:
    memo: HeadMemo[int] = HeadMemo()
    for number in range(3 * MAX_PLANS):
        memo.put(b"%d" % number, number)
        assert memo.plans[b"%d" % number] == number
        assert len(memo.plans) <= MAX_PLANS


def test_long_heads_are_not_kept() -> None:
    memo: HeadMemo[int] = HeadMemo()
    memo.put(b"a" * MAX_HEAD, 1)
    memo.put(b"a" * (MAX_HEAD + 1), 2)
    assert memo.plans == {b"a" * MAX_HEAD: 1}
