"""A client's connection, as far as the rest of a proxy may know it: its state, its request, its verbs.

Touches nothing: `Client` is the connection itself.  A connection has one request in hand at a time, so
pipelined requests are answered in order by construction.

    IDLE -> HEAD -> SMALL -> HELD -> QUEUED -> ASKED -> IDLE      HELD: the request waits for bandwidth
                 -> FLOW  ->         QUEUED -> FLOW  -> ASKED     QUEUED: it waits for an instance
    any  -> LINGER                                                answered with a body unread
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from twofold.reactor.transport import ConnectionProtocol

if TYPE_CHECKING:
    from twofold.loadbalancer.http.request_plan import ProxyPlan
    from twofold.loadbalancer.http.response_head import ResponseHead
    from twofold.reactor.transport import Transport
    from twofold.wire.refusal import Refusal

# `Final` lets mypyc inline a constant.
IDLE: Final = 0
HEAD: Final = 1  # a head has begun to arrive
SMALL: Final = 2  # a small body is being gathered
HELD: Final = 3  # the request, or its refusal, waits for bandwidth
QUEUED: Final = 4  # the whole request waits for an instance
FLOW: Final = 5  # a large body is on its way
ASKED: Final = 6  # an instance has the whole request
LINGER: Final = 7  # answered and closing; what the client still sends is dropped
CLOSED: Final = 8

# Every legal change of state. A request may be refused in any state, and the client may leave in any.
MOVES: Final = {
    IDLE: (HEAD, HELD, QUEUED, CLOSED),
    HEAD: (SMALL, FLOW, HELD, IDLE, LINGER, CLOSED),
    SMALL: (HELD, QUEUED, IDLE, LINGER, CLOSED),
    HELD: (QUEUED, IDLE, LINGER, CLOSED),
    QUEUED: (ASKED, IDLE, CLOSED),
    FLOW: (ASKED, HELD, IDLE, LINGER, CLOSED),
    ASKED: (IDLE, LINGER, CLOSED),
    LINGER: (CLOSED,),
    CLOSED: (CLOSED,),
}

# Why reading is paused; any of them is enough.
BANDWIDTH: Final = 1
INSTANCE: Final = 2  # no instance has the request yet
PRESSURE: Final = 4  # the instance takes the body more slowly than the client sends it
BACKLOG: Final = 8  # enough pipelined bytes are held
CHOKED: Final = 16  # the client does not take its responses
TURN: Final = 32  # other connections have their turn


class ResponseSink:
    """Where a response goes: `ClientResponse`. `begun`: a byte of it was sent, or is about to be."""

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun = False

    def whole(self, data: bytes, status: int, request_id: bytes, spent_us: int, now_ns: int) -> None:
        """A whole response in one piece, ready to be sent."""
        raise NotImplementedError

    def interim(self, head: ResponseHead) -> None:
        """A 1xx head. Raises BadResponse for too many of them."""
        raise NotImplementedError

    def begin(self, head: ResponseHead) -> None:
        raise NotImplementedError

    def relay(self, piece: bytes) -> None:
        """A piece of the body."""
        raise NotImplementedError

    def end(self, trailers: list[tuple[bytes, bytes]], spent_us: int) -> None:
        """The response is complete; the instance needed `spent_us` for it."""
        raise NotImplementedError


class Downstream(ConnectionProtocol):
    """Implemented by `Client`; exchanges, routers and responses use nothing else of it."""

    __deletable__ = ("sink",)
    __slots__ = (
        "bytes_in", "due_s", "left", "message", "partial", "paused", "peer", "plan", "since_s", "sink",
        "started_ns", "state", "transport",
    )  # fmt: skip

    sink: ResponseSink

    def __init__(self, plan: ProxyPlan, now_s: float) -> None:
        # The connection
        self.transport: Transport | asyncio.Transport = None  # type: ignore[assignment]
        self.peer = ""  # the client's address; empty on a Unix socket
        self.state = IDLE
        self.since_s = now_s  # when `state` began, or the last byte arrived in it
        self.partial = bytearray()  # received and not yet used
        self.paused = 0
        # The request in hand
        self.plan = plan
        self.message = b""  # its head for an instance, with the part of the body that was not sent yet
        self.started_ns = 0  # when its head was complete; 0: none was
        self.bytes_in = 0
        self.left = 0  # bytes of a flowing body that have not been read
        self.due_s = 0.0  # when its body must have arrived

    def hand_over(self) -> bytes:
        """The bytes for the instance that takes the request: its head, and the part of the body present."""
        raise NotImplementedError

    def can_replay(self) -> bool:
        """Whether all that was sent of the request is still here, and nothing of a response was sent."""
        return not self.sink.begun and self.state in (QUEUED, ASKED, FLOW) and self.plan.gathered

    def cut_off(self, refusal: Refusal) -> None:
        """There will be no response, or no rest of it."""
        raise NotImplementedError

    def finish(self, close: bool) -> None:
        """The response has been written: the next request, or the end of the connection."""
        raise NotImplementedError

    def pause(self, reason: int) -> None:
        raise NotImplementedError

    def resume(self, reason: int) -> None:
        raise NotImplementedError
