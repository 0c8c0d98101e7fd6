"""What is late on one client connection, looked at now and then, and whose fault that is.

Touches the connection only when its time is over.  A client that takes its time over a body, and bandwidth
that lets the body pass slowly, must never count against the instance that waits for them: the instance could
be ejected for the fault of its callers.
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
DRAIN_IDLE_S = 1.0  # of silence, after which most likely no request is on its way
RARELY_S = 1.0  # between two looks, unless that would stretch the shortest timeout
STRETCH = 0.1  # by more than this part of it


def pause_s(timeouts: TimeoutSettings) -> float:
    """Seconds between two looks at every connection: what is late is found late by so much at most."""
    shortest_s = min(
        timeouts.head_timeout, timeouts.body_timeout, timeouts.predict_timeout, timeouts.idle_timeout
    )
    return min(RARELY_S, STRETCH * shortest_s)


def check(client: Client, router: Router, now_s: float) -> None:
    """Has this connection been silent for too long?  `now_s` is of the proxy's clock."""
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
    """It is the client's turn: nothing keeps it from sending."""
    return client.state == SMALL or (client.state == FLOW and client.left > 0 and not client.paused)


def _check_instance(client: Client, router: Router, now_s: float) -> None:
    """predict_timeout, for a request to be taken, for its response to begin, and to go on."""
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
    # The head of a request began its time, or the end of a body that took its own.
    asked_ns = exchange.asked_at_ns if carrier is not None else 0
    began_ns = client.started_ns if client.plan.gathered or not asked_ns else asked_ns
    now_ns = monotonic_ns()
    if began_ns and now_ns - began_ns > limit_s * 1e9:
        # Not for the little that the queue and the bandwidth have left of it.
        blamed = asked_ns > 0 and now_ns - asked_ns > limit_s * 1e9 / 2
        router.give_up(exchange, TOO_LATE, blamed)


def _check_taken(client: Client, now_s: float) -> None:
    """A client that takes nothing of what is written for it is cut off, also when that was all there was."""
    response, unsent = client.response, client.transport.get_write_buffer_size()
    if unsent != response.unsent or response.writer.ticket is not None or not unsent:
        response.unsent, response.stuck_since_s = unsent, now_s
    elif now_s - response.stuck_since_s > client.services.config.timeouts.body_timeout:
        response.reset_connection()
