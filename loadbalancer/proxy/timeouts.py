"""Timeouts of one client connection, checked periodically, and their attribution.

Touches the connection only when a timeout has expired.  Time that an instance waits for a slow client or for
bandwidth must not count against the instance: it could be ejected for the fault of its callers.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING

from twofold.loadbalancer.http.error_responses import TOO_LATE
from twofold.loadbalancer.proxy.downstream import (
    ASKED,
    CLOSED,
    FLOW,
    HEAD,
    IDLE,
    LINGER,
    PRESSURE,
    QUEUED,
    SMALL,
)
from twofold.wire.refusal import LATE_BODY, LATE_HEAD

if TYPE_CHECKING:
    from twofold.loadbalancer.config import TimeoutSettings
    from twofold.loadbalancer.proxy.client import Client
    from twofold.loadbalancer.proxy.router import Router

LINGER_SECONDS = 2.0
DRAIN_IDLE_S = 1.0  # an idle connection is closed after this time while draining
RARELY_S = 1.0  # longest time between two checks
STRETCH = 0.1  # share of the shortest timeout by which a check may be late


def pause_s(timeouts: TimeoutSettings) -> float:
    """Seconds between two checks of every connection, at most STRETCH of the shortest timeout."""
    shortest_s = min(
        timeouts.head_timeout, timeouts.body_timeout, timeouts.predict_timeout, timeouts.idle_timeout
    )
    return min(RARELY_S, STRETCH * shortest_s)


def check(client: Client, router: Router, now_s: float) -> None:
    """Apply the timeout of the connection's state.  `now_s` is on the loop's clock."""
    services = client.services
    state, silent_s, timeouts = client.state, now_s - client.since_s, services.config.timeouts
    if state == IDLE:
        if silent_s > (DRAIN_IDLE_S if services.state.draining else timeouts.idle_timeout):
            client.transport.close()
    elif state == HEAD and silent_s > timeouts.head_timeout:
        client.plan = services.unreadable
        client.refuse(LATE_HEAD, close=True)
    elif _owes_body(client) and (silent_s > timeouts.body_timeout or now_s > client.due_s):
        router.give_up(client.exchange, LATE_BODY)
    elif state == LINGER and silent_s > LINGER_SECONDS:
        client.transport.abort()
    elif state in (QUEUED, FLOW, ASKED):
        _check_instance(client, router, now_s)
    if client.state in (IDLE, FLOW, ASKED, CLOSED):
        _check_taken(client, now_s)


def _owes_body(client: Client) -> bool:
    """Whether the client has to send body bytes and reading is not paused."""
    return client.state == SMALL or (client.state == FLOW and client.left > 0 and not client.paused)


def _check_instance(client: Client, router: Router, now_s: float) -> None:
    """Apply predict_timeout to queueing, to the first byte of the response, and to gaps within it."""
    response, exchange = client.response, client.exchange
    limit_s = client.services.config.timeouts.predict_timeout
    if client.state == FLOW and not client.paused & PRESSURE:
        return
    carrier = exchange.carrier
    if client.state == FLOW or response.begun:
        stuck = now_s - max(client.since_s, exchange.heard_s) > limit_s
        if not stuck or carrier is None or exchange.held:
            return
        if response.begun:
            carrier.fail("it stopped within an exchange")
        else:
            router.give_up(exchange, TOO_LATE, blamed=True)
        return
    # The time limit runs from the head of a request; for a streamed body, from its last byte.
    asked_ns = exchange.asked_at_ns if carrier is not None else 0
    began_ns = client.started_ns if client.plan.gathered or not asked_ns else asked_ns
    now_ns = monotonic_ns()
    if began_ns and now_ns - began_ns > limit_s * 1e9:
        # The instance is blamed only if it had at least half of the limit for itself.
        blamed = asked_ns > 0 and now_ns - asked_ns > limit_s * 1e9 / 2
        router.give_up(exchange, TOO_LATE, blamed)


def _check_taken(client: Client, now_s: float) -> None:
    """Reset a client that has read none of the bytes written for it within body_timeout."""
    response, unsent = client.response, client.transport.get_write_buffer_size()
    if unsent != response.unsent or response.writer.ticket is not None or not unsent:
        response.unsent, response.stuck_since_s = unsent, now_s
    elif now_s - response.stuck_since_s > client.services.config.timeouts.body_timeout:
        response.reset_connection()
