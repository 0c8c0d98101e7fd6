"""The interface of a client's connection for the rest of a proxy: state, current request, operations.

Touches nothing: `Client` implements the connection.  A connection processes one request at a time, so
pipelined requests are answered in order.

    IDLE -> HEAD -> SMALL -> HELD -> QUEUED -> ASKED -> IDLE      HELD: the request waits for bandwidth
                 -> FLOW  ->         QUEUED -> FLOW  -> ASKED     QUEUED: it waits for an instance
    any  -> LINGER                                                answered before the body was read
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
HEAD: Final = 1  # part of a head has arrived
SMALL: Final = 2  # a small body is being buffered
HELD: Final = 3  # the request, or its refusal, waits for bandwidth
QUEUED: Final = 4  # the whole request waits for an instance
FLOW: Final = 5  # a large body is being streamed
ASKED: Final = 6  # an instance has the whole request
LINGER: Final = 7  # answered and closing; further bytes from the client are dropped
CLOSED: Final = 8

# Every legal change of state. A refusal or a lost connection may occur in any state.
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

# Reasons for which reading is paused, as bits; reading resumes when none is set.
BANDWIDTH: Final = 1
INSTANCE: Final = 2  # no instance has the request yet
PRESSURE: Final = 4  # the instance takes the body more slowly than the client sends it
BACKLOG: Final = 8  # MAX_BACKLOG pipelined bytes are buffered
CHOKED: Final = 16  # the client does not read its responses
TURN: Final = 32  # the event loop runs other connections first


class ResponseSink:
    """Receives a response; implemented by `ClientResponse`. `begun`: its first byte was written or queued."""

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun = False

    def whole(self, data: bytes, status: int, request_id: bytes, spent_us: int, now_ns: int) -> None:
        """A complete response. `spent_us`: the instance's time in microseconds; `now_ns`: its arrival."""
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
        """The response is complete; the instance needed `spent_us` microseconds for it."""
        raise NotImplementedError


class Downstream(ConnectionProtocol):
    """Implemented by `Client`; exchanges, routers and responses use only this interface."""

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
        self.since_s = now_s  # when `state` was entered, or the last byte arrived in it
        self.partial = bytearray()  # received and not yet processed
        self.paused = 0
        # The current request
        self.plan = plan
        self.message = b""  # the head for the instance, and the part of the body not sent yet
        self.started_ns = 0  # when the head was complete; 0: it is not
        self.bytes_in = 0
        self.left = 0  # bytes of a streamed body that have not been read
        self.due_s = 0.0  # deadline for the whole body, on the loop's clock

    def hand_over(self) -> bytes:
        """The bytes to send to the selected instance: the head and the received part of the body."""
        raise NotImplementedError

    def can_replay(self) -> bool:
        """Whether the whole request is still buffered and no byte of a response was sent."""
        return not self.sink.begun and self.state in (QUEUED, ASKED, FLOW) and self.plan.gathered

    def cut_off(self, refusal: Refusal) -> None:
        """End the request without its response, or without the rest of it."""
        raise NotImplementedError

    def finish(self, close: bool) -> None:
        """The response has been written: start the next request, or close the connection."""
        raise NotImplementedError

    def pause(self, reason: int) -> None:
        raise NotImplementedError

    def resume(self, reason: int) -> None:
        raise NotImplementedError
