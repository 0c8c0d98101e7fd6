"""One client connection of the load balancer: requests in, answers out, in order.

Touches its transport; the proxy owns what connections share.  A connection has one request in hand,
so pipelined requests are answered in order by construction; what arrives meanwhile waits in
`partial`, and beyond a limit in the kernel.

A small body is gathered before anybody is asked, so that it can be sent again while no byte of an
answer has come.  A larger one flows: a piece is read when the last one has gone on, which is how a
slow instance or a spent bandwidth slows the client down.

    IDLE -> HEAD -> SMALL -> HELD -> QUEUED -> ASKED -> IDLE      HELD: the request waits for bandwidth
                 -> FLOW  ->         QUEUED -> FLOW  -> ASKED     QUEUED: it waits for an instance
    any  -> LINGER                                                answered with a body unread
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from twofold.loadbalancer.access import authorization
from twofold.loadbalancer.http.request_plan import NEVER
from twofold.loadbalancer.proxy.response import ClientResponse
from twofold.loadbalancer.proxy.upstream import HIGH_WATER, LOW_WATER, UpstreamConnection
from twofold.reactor.transport import ConnectionProtocol, Transport
from twofold.wire import request_head
from twofold.wire.refusal import Refusal

if TYPE_CHECKING:
    from twofold.loadbalancer.bandwidth.fair_queue import Ticket
    from twofold.loadbalancer.http.request_plan import ProxyPlan
    from twofold.loadbalancer.proxy.process import Proxy
    from twofold.loadbalancer.proxy.upstream_pool import UpstreamPool

# States. What is Final costs a compiled module no look for its value.
IDLE: Final = 0
HEAD: Final = 1
SMALL: Final = 2
HELD: Final = 3
QUEUED: Final = 4
FLOW: Final = 5
ASKED: Final = 6
LINGER: Final = 7
CLOSED: Final = 8

# Why reading is paused; any of them is enough.
BANDWIDTH, INSTANCE, PRESSURE, BACKLOG, CHOKED, OTHERS = 1, 2, 4, 8, 16, 32

MAX_BACKLOG = 131072  # pipelined bytes held for later
MOST_STEPS = 4  # refused requests in a row, before others have their turn
BODY_SECONDS = 30.0  # and so much longer as the body takes at this rate
MIN_BODY_RATE = 8000  # bytes per second
MAX_LINGER = 4 << 20  # bytes of a refused body that are read and dropped
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client(ConnectionProtocol):
    __deletable__ = ("response",)
    __slots__ = (
        "advancing", "bytes_in", "due", "expected", "head", "left", "link", "message", "partial", "paused",
        "peer", "plan", "progress", "proxy", "raw", "response", "retried", "searched", "since", "started",
        "state", "ticket", "transport", "upstream",
    )  # fmt: skip

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.transport: Transport | asyncio.Transport = None  # type: ignore[assignment]
        self.peer = ""
        self.state = IDLE
        self.since = proxy.now
        self.partial = bytearray()
        self.searched = 0  # bytes of `partial` that hold no end of a head
        self.paused = 0
        self.progress = -1
        self.advancing = False
        self.response = ClientResponse(self)
        # The request in hand
        self.plan: ProxyPlan = proxy.no_plan
        self.head = b""  # the bytes for an instance
        self.message = b""  # with what of the body is here and not yet sent
        self.raw = b""  # the head that `plan` was made from
        self.expected = -1  # bytes of a read that holds such a head and its body, and nothing else
        self.started = 0  # monotonic ns at which its head was complete; 0: none was
        self.bytes_in = 0
        self.left = 0  # bytes of a flowing body that have not been read
        self.due = 0.0
        self.retried = 0  # `started` of the last request that was given a second attempt
        self.ticket: Ticket | None = None
        self.link: UpstreamPool | None = None
        self.upstream: UpstreamConnection | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        self.proxy.connected(self)

    # ------------------------------------------------------------------ reading

    def data_received(self, data: bytes) -> None:
        """The hot path: a whole small request in one read, with the head of the last one."""
        nbytes = len(data)
        if nbytes == self.expected and self.state == IDLE and data.startswith(self.raw):
            proxy, self.started = self.proxy, monotonic_ns()
            limiter = proxy.limiter
            self.message = self.head + data[nbytes - self.plan.length :]
            self.bytes_in = nbytes
            if proxy.simple and (nbytes <= limiter.free or limiter.fill(nbytes)):
                limiter.free -= nbytes  # Throttle.pay
                self.state = QUEUED
                proxy.router.assign(self, self.started)
            else:
                self._begin(self.plan, gathered=True)
        elif self.state == LINGER:
            self.progress += nbytes
            if self.progress > MAX_LINGER:
                self.transport.abort()
        elif self.state == FLOW and not self.partial and nbytes <= self._piece():
            self._flow_piece(data)  # as it came: large bodies are not to be copied
        else:
            self.partial += data
            if self.state in (IDLE, HEAD, SMALL):
                self.advance()
            elif self.state == FLOW and self.left:
                self._flow()
            elif len(self.partial) > MAX_BACKLOG:
                self.pause(BACKLOG)

    def advance(self) -> None:
        """Take as many steps as `partial` allows: a loop, since a refusal ends in here again."""
        if self.advancing or not self.partial:
            return
        self.advancing = True
        for _ in range(MOST_STEPS):
            if not self.partial or self.paused or self.state not in (IDLE, HEAD, SMALL):
                break
            if self.state != SMALL and not self._read_head():
                break
            if self.state == SMALL and not self._read_small():
                break
        else:
            self.pause(OTHERS)
            asyncio.get_running_loop().call_soon(self.resume, OTHERS)
        self.advancing = False

    def _read_head(self) -> bool:
        """True when a head was complete, and its request has begun or was refused."""
        proxy, partial = self.proxy, self.partial
        if self.state == IDLE:
            self.state, self.since, self.started = HEAD, proxy.now, 0
        try:
            end = request_head.find_head(partial, max(0, self.searched - 3))
            if end < 0:
                doom = request_head.doomed(partial, self.searched)
                if doom is not None:
                    raise doom
                self.searched = len(partial)
                return False
            self.searched = 0
            raw = bytes(partial[:end])
            if raw != self.raw or self.plan.keep_until != NEVER:
                self.plan = proxy.admission.plan(raw)
                self.head = self.plan.upstream_head(self.peer, proxy.hops)
                self.raw = raw
            plan = self.plan
        except request_head.BadRequest as error:
            self.plan, self.raw, self.bytes_in = proxy.no_plan, b"", len(partial)
            self.refuse(Refusal(error.status, error.code, error.message), close=True)
            return False
        del partial[:end]
        self.started, self.bytes_in = monotonic_ns(), end
        self.expected = end + plan.length if plan.repeats else -1
        self._begin(plan)
        return True

    def _begin(self, plan: ProxyPlan, gathered: bool = False) -> None:
        """Admit the request, before its body is read."""
        refused = plan.refusal or self.proxy.admission.admit(self, plan)
        if refused is not None:
            unread = not gathered and len(self.partial) < plan.length
            if not gathered:  # or the body would be read as the next request
                del self.partial[: plan.length]
            self.refuse(refused, close=plan.close or unread)
        elif gathered:
            self._gathered()
        else:
            self._await_body(plan)

    def _await_body(self, plan: ProxyPlan) -> None:
        self.since = self.proxy.now
        self.due = self.since + BODY_SECONDS + plan.length / MIN_BODY_RATE
        if plan.head.expect_continue and len(self.partial) < plan.length:
            self.transport.write(CONTINUE)
            self.response.bytes_out += len(CONTINUE)
        if plan.gathered:
            self.state = SMALL
            return
        self.state, self.left, self.message = FLOW, plan.length, self.head
        self.proxy.limiter.announced += plan.length
        self.proxy.router.assign_upload(self, self.started)
        self._flow()

    def _read_small(self) -> bool:
        length = self.plan.length
        if len(self.partial) < length:
            return False
        self.message = self.head + self.partial[:length]
        del self.partial[:length]
        self.bytes_in += length
        self._gathered()
        return True

    def _gathered(self) -> None:
        """The whole request is here: pay for it, then ask an instance."""
        limiter, wanted = self.proxy.limiter, self.plan.digest
        if wanted is not None:
            refused = authorization.body_refusal(
                wanted, hashlib.sha256(self.message[len(self.head) :]).digest()
            )
            if refused is not None:
                self.refuse(refused, close=self.plan.close)
                return
        if not limiter.pay(self.bytes_in):
            self.state = HELD
            self.ticket = limiter.wait(self.bytes_in, self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        self.ticket = None
        self.state = QUEUED
        # It may have been held back since it came, which neither an instance nor the queue is to blame for.
        self.proxy.router.assign(self, monotonic_ns())

    # ------------------------------------------------------------------ a body that flows

    def _flow(self) -> None:
        """What is here of a large body: pay for a piece, pass it on, go on to the next."""
        partial = self.partial
        while partial and self.left and self.state == FLOW and not self.paused:
            size = self._piece()
            piece = bytes(partial[:size])
            del partial[:size]
            self._flow_piece(piece)

    def _piece(self) -> int:
        """Bytes of the body that may pass at once: more would not be fair to others."""
        return min(self.left, self.proxy.limiter.quantum)

    def _flow_piece(self, piece: bytes) -> None:
        size, limiter = len(piece), self.proxy.limiter
        self.left -= size
        limiter.announced -= size
        self.bytes_in += size
        self.since = self.proxy.now
        if not limiter.pay(size):
            self.pause(BANDWIDTH)
            self.ticket = limiter.wait(size, functools.partial(self._flow_on, piece))
        else:
            self._pass(piece)

    def _flow_on(self, piece: bytes) -> None:
        self.ticket = None
        self._excuse()
        self._pass(piece)
        self.resume(BANDWIDTH)

    def _excuse(self) -> None:
        """It was kept from sending since its last piece: that is no time of its own."""
        self.due += self.proxy.now - self.since
        self.since = self.proxy.now

    def _pass(self, piece: bytes) -> None:
        upstream = self.upstream
        if upstream is None:  # nobody has it yet: one piece is held, the rest stays in the kernel
            self.message += piece
            self.pause(INSTANCE)
            return
        if upstream.transport.is_closing():
            return
        upstream.transport.write(piece)
        self._has(upstream)

    def _has(self, upstream: UpstreamConnection) -> None:
        """The instance has what is there of the request."""
        whole = not self.left and self.ticket is None
        if whole and self.state == FLOW:
            self.state = ASKED
        upstream.given(whole)

    def hand_over(self, upstream: UpstreamConnection) -> bytes:
        """The bytes for the instance that takes the request: its head, and what is there of the body."""
        self.upstream = upstream
        data = self.message
        if self.state == QUEUED:
            self.state = ASKED
        else:
            self.message = b""
            self._has(upstream)
        return data

    def can_replay(self) -> bool:
        """All that was sent of the request is still here."""
        return not self.response.begun and self.state in (QUEUED, ASKED, FLOW) and self.plan.gathered

    # ------------------------------------------------------------------ pausing

    def pause(self, reason: int) -> None:
        if not self.paused and not self.transport.is_closing():
            self.transport.pause_reading()
        self.paused |= reason

    def resume(self, reason: int) -> None:
        before, self.paused = self.paused, self.paused & ~reason
        if self.paused or not before:
            return
        if self.state == FLOW:
            self._excuse()
            self._flow()
        else:
            self.advance()
        if len(self.partial) > MAX_BACKLOG and self.state in (HELD, QUEUED, FLOW, ASKED) and not self.left:
            self.paused |= BACKLOG  # what is held is enough for now
        elif not self.paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The client does not take its answers: nothing more is read for it, nor begun."""
        self.response.hold(PRESSURE)
        self.pause(CHOKED)

    def resume_writing(self) -> None:
        self.response.go_on(PRESSURE)
        self.resume(CHOKED)

    # ------------------------------------------------------------------ endings

    def refuse(self, refusal: Refusal, close: bool) -> None:
        """The load balancer answers by itself."""
        self.response.refuse(refusal, close or self.proxy.draining)

    def cut_off(self, refusal: Refusal) -> None:
        """There will be no (more) answer: say why if nothing has been sent, otherwise break off."""
        if self.state == CLOSED:
            return
        if self.response.begun:
            self.state = CLOSED
            self.response.break_off()
        else:
            unread = bool(self.left) or self.state == SMALL  # what comes of it is not the next request
            self.refuse(refusal, close=self.plan.close or unread)

    def finish(self, close: bool) -> None:
        """The answer is on its way: next request, or the end."""
        unread = bool(self.left)
        self.proxy.limiter.announced -= self.left
        self.message, self.left, self.started = b"", 0, 0
        self.link = self.upstream = None
        if self.ticket is not None:  # a piece for an instance that wants no more
            self.proxy.limiter.cancel(self.ticket)
            self.ticket = None
        if unread or (close and self.state in (HEAD, SMALL)):
            self._linger()
        elif close:
            self.state = CLOSED
            self.transport.close()
        else:
            self.state, self.since = IDLE, self.proxy.now
            if self.paused:
                self.resume(self.paused & ~CHOKED)
            else:
                self.advance()

    def _linger(self) -> None:
        """Close, but let the client read the answer first: a body unread would turn it into a reset."""
        self.state, self.since, self.progress = LINGER, self.proxy.now, 0
        self.partial.clear()
        self.resume(self.paused)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS has no half-close
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        state, self.state = self.state, CLOSED
        self.proxy.limiter.announced -= self.left
        self.left = 0
        if self.ticket is not None:
            self.proxy.limiter.cancel(self.ticket)
        self.response.drop()
        if self.link is not None:
            self.link.cancel(self)
        elif state == QUEUED or (state == FLOW and self.upstream is None):
            self.proxy.router.forget(self)
        if state == SMALL:
            self.bytes_in += len(self.partial)
        if state in (SMALL, HELD, QUEUED, FLOW, ASKED):
            self.response.note(499)
        self.proxy.disconnected(self)
        del self.response  # which holds us: no cycle must wait for the collector, which is rare here
