"""What is late on one client connection: looked at once a second, and while the front drains at each tick.

Touches the connection only through what it does when its time is over, and its note of what was unsent.
"""

from __future__ import annotations

from twofold.server.front.http1 import (
    BODY,
    CLOSED,
    FLUSHING,
    HEAD,
    IDLE,
    LINGER,
    SENDING,
    SMALL,
    Connection,
)  # fmt: skip

LINGER_S = 2.0  # for the client to read a refusal and close
DRAIN_IDLE_S = 0.5  # of silence, after which no request is on its way, most likely


def check(connection: Connection, now_s: float) -> None:
    """Has this connection been silent for too long?  `now_s` is the loop's clock, as `Front.now_s` is."""
    state, silent_s, front = connection.state, now_s - connection.since_s, connection.front
    if state == IDLE:
        if silent_s > (DRAIN_IDLE_S if front.draining else front.http.idle_timeout):
            connection.transport.close()
    elif state == HEAD:
        if silent_s > front.http.head_timeout:
            connection.time_out()
    elif state in (SMALL, BODY):
        if silent_s > front.http.body_timeout or (state == BODY and now_s > connection.transfer_due_s):
            connection.time_out()
    elif state == LINGER:
        if silent_s > LINGER_S:
            connection.transport.abort()
    elif state in (SENDING, FLUSHING, CLOSED):
        _check_taken(connection, now_s)


def _check_taken(connection: Connection, now_s: float) -> None:
    """A client that takes nothing of what was written for it, or too little of a slot, is cut off."""
    unsent = connection.transport.get_write_buffer_size()
    if connection.state == SENDING and now_s > connection.transfer_due_s:
        connection.transport.abort()
    elif unsent != connection.unsent:
        connection.unsent, connection.since_s = unsent, now_s
    elif now_s - connection.since_s > connection.front.http.body_timeout:
        connection.transport.abort()
