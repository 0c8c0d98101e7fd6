"""What is late on one client connection, looked at now and then, and whose fault that is.

Touches the connection only through what it does when its time is over.  A client that takes its time
over a body, and bandwidth that lets it pass slowly, must never count against the instance that waits
for them: it could be ejected for its callers.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING

from twofold.loadbalancer.http.error_responses import TOO_LATE
from twofold.loadbalancer.proxy.client import ASKED, CLOSED, FLOW, HEAD, IDLE, LINGER, PRESSURE, QUEUED, SMALL
from twofold.wire.refusal import LATE_BODY, LATE_HEAD

if TYPE_CHECKING:
    from twofold.loadbalancer.config import TimeoutSettings
    from twofold.loadbalancer.proxy.client import Client

LINGER_SECONDS = 2.0
DRAIN_IDLE = 1.0  # seconds of silence after which no request is on its way, most likely
RARELY = 1.0  # seconds between two looks, unless that would stretch the shortest timeout
STRETCH = 0.1  # by more than this part of it


def pause(timeouts: TimeoutSettings) -> float:
    """Seconds between two looks at every connection: what is late is found late by so much at most."""
    shortest = min(
        timeouts.head_timeout, timeouts.body_timeout, timeouts.predict_timeout, timeouts.idle_timeout
    )
    return min(RARELY, STRETCH * shortest)


def check(client: Client, now: float) -> None:
    """Has this connection been silent for too long?  `now` in seconds, of the proxy's clock."""
    state, silent, timeouts = client.state, now - client.since, client.proxy.config.timeouts
    if state == IDLE:
        if silent > (DRAIN_IDLE if client.proxy.draining else timeouts.idle_timeout):
            client.transport.close()
    elif state == HEAD and silent > timeouts.head_timeout:
        client.plan = client.proxy.no_plan
        client.refuse(LATE_HEAD, close=True)
    elif _owes_body(client) and (silent > timeouts.body_timeout or now > client.due):
        client.proxy.router.give_up(client, LATE_BODY)
    elif state == LINGER and silent > LINGER_SECONDS:
        client.transport.abort()
    elif state in (QUEUED, FLOW, ASKED):
        _check_instance(client, now)
    if client.state in (IDLE, FLOW, ASKED, CLOSED):
        _check_taken(client, now)


def _owes_body(client: Client) -> bool:
    """It is the client's turn: nothing keeps it from sending."""
    return client.state == SMALL or (client.state == FLOW and client.left > 0 and not client.paused)


def _check_instance(client: Client, now: float) -> None:
    """predict_timeout, for a request to be taken, for its answer to begin, and to go on."""
    response, upstream = client.response, client.upstream
    limit = client.proxy.config.timeouts.predict_timeout
    if client.state == FLOW and not client.paused & PRESSURE:
        return
    if client.state == FLOW or response.begun:
        stuck = now - max(client.since, response.heard) > limit
        if not stuck or upstream is None or response.held:
            return
        if response.begun:
            upstream.fail("it stopped within an exchange")
        else:
            client.proxy.router.give_up(client, TOO_LATE, blamed=True)
        return
    # The head of a request began its time, or the end of a body that took its own.
    asked = upstream.asked_at if upstream is not None else 0
    began = client.started if client.plan.gathered or not asked else asked
    waited = monotonic_ns()
    if began and waited - began > limit * 1e9:
        # Not for the little that the queue and the bandwidth have left of it.
        blamed = asked > 0 and waited - asked > limit * 1e9 / 2
        client.proxy.router.give_up(client, TOO_LATE, blamed)


def _check_taken(client: Client, now: float) -> None:
    """Whoever takes nothing of what is written for it is cut off, also when that is all there was."""
    response, waiting = client.response, client.transport.get_write_buffer_size()
    if waiting != response.progress or response.ticket is not None or not waiting:
        response.progress, response.since = waiting, now
    elif now - response.since > client.proxy.config.timeouts.body_timeout:
        response.reset_connection()
