"""Deficit round robin: equal flows get equal shares, small messages wait for one round at most."""

from __future__ import annotations

import random

import pytest

from twofold.loadbalancer.bandwidth.fair_queue import LEAST_QUANTUM, MOST_QUANTUM, FairQueue, Ticket, quantum
from twofold.loadbalancer.bandwidth.token_bucket import TokenBucket

SECOND = 1_000_000_000


def ticket(size: int, answer: bool = False) -> Ticket:
    return Ticket(size, lambda: None, 0, answer)


def queue_of(*tickets: Ticket) -> FairQueue:
    queue = FairQueue()
    for each in tickets:
        queue.add(each)
    return queue


def serve(queue: FairQueue, nbytes: int) -> list[Ticket]:
    """With so many bytes to spend."""
    left = nbytes

    def spend(size: int) -> bool:
        nonlocal left
        if size > left:
            return False
        left -= size
        return True

    return queue.serve(spend)


def serve_from(queue: FairQueue, bucket: TokenBucket, now: int) -> list[Ticket]:
    def spend(nbytes: int) -> bool:
        if bucket.delay_ns(now, 8 * nbytes):
            return False
        bucket.take(now, 8 * nbytes)
        return True

    return queue.serve(spend)


@pytest.mark.parametrize(
    ("rate", "nbytes"), [(0, LEAST_QUANTUM), (50_000_000, 18_750), (10**10, MOST_QUANTUM)]
)
def test_the_quantum_is_3_ms_of_the_rate_within_limits(rate: int, nbytes: int) -> None:
    assert quantum(rate) == nbytes


def test_tickets_are_served_in_order_and_as_far_as_they_are_paid() -> None:
    first, second, third = (ticket(100) for _ in range(3))
    queue = queue_of(first, second, third)
    assert serve(queue, 250) == [first, second]
    assert (len(queue), queue.queued, queue.next_size) == (1, 100, 100)
    assert serve(queue, 99) == []
    assert serve(queue, 100) == [third] and queue.queued == 0


def test_urgent_tickets_are_served_first_and_in_their_order() -> None:
    usual, urgent = ticket(10), [ticket(20), ticket(30)]
    queue = queue_of(usual)
    for each in urgent:
        queue.add(each, urgent=True)
    assert queue.next_size == 20
    assert serve(queue, 1000) == [*urgent, usual]


def test_an_urgent_ticket_that_is_not_paid_holds_back_the_others() -> None:
    queue = queue_of(ticket(10))
    queue.add(ticket(1000), urgent=True)
    assert serve(queue, 500) == [] and len(queue) == 2


def test_add_tells_whether_a_ticket_is_the_next_one() -> None:
    queue = FairQueue()
    assert queue.add(ticket(1))
    assert not queue.add(ticket(1))
    assert queue.add(ticket(1), urgent=True), "it goes before those"
    assert not queue.add(ticket(1), urgent=True)
    alone = FairQueue()
    alone.add(ticket(1), urgent=True)
    assert not alone.add(ticket(1))


def test_a_cancelled_ticket_is_skipped_at_no_cost() -> None:
    gone, there = ticket(10**9), ticket(10)
    queue = queue_of(gone, there)
    queue.cancel(gone)
    assert queue.queued == 10 and queue.next_size == 10
    assert serve(queue, 10) == [there] and queue.queued == 0


def test_cancelling_what_was_served_or_cancelled_changes_nothing() -> None:
    served, gone, there = ticket(10), ticket(20), ticket(30)
    queue = queue_of(served, gone, there)
    serve(queue, 10)
    for each in (served, gone, gone):
        queue.cancel(each)
    assert queue.queued == 30 and served.go is None


def test_bytes_of_answers_are_counted_apart() -> None:
    request, response = ticket(100), ticket(50, answer=True)
    queue = queue_of(request, response)
    assert (queue.queued, queue.answers) == (150, 50)
    queue.cancel(response)
    assert (queue.queued, queue.answers) == (100, 0)


def test_a_large_ticket_gathers_its_turns_while_small_ones_pass() -> None:
    large, small = ticket(3 * LEAST_QUANTUM), [ticket(1000) for _ in range(3)]
    queue = queue_of(large, *small)
    assert serve(queue, 1000) == small[:1]
    assert serve(queue, 10 * LEAST_QUANTUM) == [*small[1:], large]


@pytest.mark.parametrize("flows", [2, 8, 64])
@pytest.mark.parametrize("rate", [10_000_000, 1_000_000_000])
def test_equal_flows_get_equal_shares(flows: int, rate: int) -> None:
    queue, bucket, dice = FairQueue(), TokenBucket(rate, 0, 0), random.Random(3)
    queue.quantum = quantum(rate)
    sent = [0] * flows
    owner: dict[int, int] = {}
    tickets: list[Ticket] = []  # kept, so that no two have the same id()

    def join(flow: int) -> None:
        tickets.append(ticket(queue.quantum))
        owner[id(tickets[-1])] = flow
        queue.add(tickets[-1])

    for flow in range(flows):
        join(flow)
    now = 0
    while now < 5 * SECOND:
        now += dice.randrange(1, 3_000_000)
        for paid in serve_from(queue, bucket, now):
            sent[owner[id(paid)]] += paid.size
            join(owner[id(paid)])
    jain = sum(sent) ** 2 / (flows * sum(one * one for one in sent))
    assert jain >= 0.99 and max(sent) <= 1.05 * min(sent)


def test_a_small_message_passes_an_elephant() -> None:
    rate = 10_000_000
    queue, bucket = FairQueue(), TokenBucket(rate, 0, 0)
    queue.quantum = quantum(rate)
    small = ticket(1000)
    queue.add(ticket(10 * queue.quantum))
    queue.add(small)
    served: list[Ticket] = []
    now = 0
    while not served:
        now += 1_000_000
        served = serve_from(queue, bucket, now)
    assert served[0] is small and now <= 2 * queue.quantum * 8 * SECOND // rate
