"""One client connection of the load balancer: requests in, responses out, in order.

Touches its transport.  A connection has one current request.  Bytes that arrive during it are kept in
`partial`; above MAX_BACKLOG, reading is paused and the kernel buffers them.  States: see downstream.py.

A small body is buffered before an instance is selected, so that the request can be retried until the first
byte of a response arrives.  A larger body is streamed (upload.py).
"""

from __future__ import annotations

import asyncio
import hashlib
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.access import authorization
from twofold.loadbalancer.http.error_responses import CONNECTION_LIMITED
from twofold.loadbalancer.http.request_plan import NEVER
from twofold.loadbalancer.proxy.downstream import (
    ASKED,
    BACKLOG,
    CHOKED,
    CLOSED,
    FLOW,
    HEAD,
    HELD,
    IDLE,
    LINGER,
    PRESSURE,
    QUEUED,
    SMALL,
    TURN,
    Downstream,
)
from twofold.loadbalancer.proxy.exchange import CANCELLED, Exchange
from twofold.loadbalancer.proxy.response import ClientResponse
from twofold.loadbalancer.proxy.upload import Upload, due_s
from twofold.loadbalancer.proxy.upstream import HIGH_WATER, LOW_WATER
from twofold.wire import request_head
from twofold.wire.refusal import Refusal

if TYPE_CHECKING:
    from twofold.loadbalancer.http.request_plan import ProxyPlan
    from twofold.loadbalancer.proxy.connection_limit import ConnectionLimit
    from twofold.loadbalancer.proxy.router import Router
    from twofold.loadbalancer.proxy.services import Services

MAX_BACKLOG = 131072  # pipelined bytes that are buffered
MOST_STEPS = 4  # consecutive requests refused before the event loop runs other connections
MAX_LINGER = 4 << 20  # bytes of a refused body that are read and dropped
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client(Downstream):
    __deletable__ = ("exchange", "response", "upload")
    __slots__ = (
        "_advancing", "_connections", "_dropped", "_expected", "_head", "_raw", "_router", "_searched",
        "exchange", "response", "services", "upload",
    )  # fmt: skip

    def __init__(self, services: Services, router: Router, connections: ConnectionLimit) -> None:
        super().__init__(services.unreadable, services.state.now_s)
        self.services = services
        self._router = router
        self._connections = connections
        self.exchange = Exchange(self, router, services.state)
        self.response = self.sink = ClientResponse(self, self.exchange, services)
        self.upload = Upload(self, self.exchange, services)
        # Reading
        self._searched = 0  # bytes of `partial` searched without finding the end of a head
        self._advancing = False
        self._dropped = 0  # bytes of a refused body
        # The current request
        self._head = b""  # the head as sent to the instance
        self._raw = b""  # the head that `plan` was made from
        self._expected = -1  # size of a read that holds exactly this head and its body; -1: disabled

    def connection_made(self, transport: Any) -> None:
        """Close the connection unless its address is allowed and max_connections is not reached."""
        self.transport = transport
        self.transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        self._connections.joined(self)
        if not self.peer:  # no PROXY line has set it
            peer = transport.get_extra_info("peername")
            self.peer = peer[0] if isinstance(peer, tuple) else ""
        if not self.services.admission.admits(self.peer):
            self.services.cells[shared_memory.UNAUTHORISED] += 1
            self.transport.abort()
        elif not self._connections.has_room(self.services.state.now_s):
            self.refuse(CONNECTION_LIMITED, close=True)

    # ------------------------------------------------------------------ reading

    def data_received(self, data: bytes) -> None:
        """Hot path: one read holds a whole small request whose head equals the previous one."""
        nbytes = len(data)
        if nbytes == self._expected and self.state == IDLE and data.startswith(self._raw):
            services, self.started_ns = self.services, monotonic_ns()
            self.message = self._head + data[nbytes - self.plan.length :]
            self.bytes_in = nbytes
            if services.admission.simple and services.limiter.pay(nbytes):
                self.state = QUEUED
                self._router.assign(self.exchange, self.started_ns)
            else:
                self._begin(self.plan, gathered=True)
        elif self.state == LINGER:
            self._dropped += nbytes
            if self._dropped > MAX_LINGER:
                self.transport.abort()
        elif self.state == FLOW and not self.partial and nbytes <= self.upload.piece_size:
            self.upload.take(data)  # without a copy through `partial`
        else:
            self.partial += data
            if self.state in (IDLE, HEAD, SMALL):
                self._advance()
            elif self.state == FLOW and self.left:
                self.upload.flow()
            elif len(self.partial) > MAX_BACKLOG:
                self.pause(BACKLOG)

    def _advance(self) -> None:
        """Process requests from `partial`. A loop, because a refusal calls this method recursively."""
        if self._advancing or not self.partial:
            return
        self._advancing = True
        for _ in range(MOST_STEPS):
            if not self.partial or self.paused or self.state not in (IDLE, HEAD, SMALL):
                break
            if self.state != SMALL and not self._read_head():
                break
            if self.state == SMALL and not self._read_small():
                break
        else:
            self.pause(TURN)
            asyncio.get_running_loop().call_soon(self.resume, TURN)
        self._advancing = False

    def _read_head(self) -> bool:
        """True if `partial` held a complete head; its request has then begun or been refused."""
        services, partial = self.services, self.partial
        if self.state == IDLE:
            self.state, self.since_s, self.started_ns = HEAD, services.state.now_s, 0
        try:
            end = request_head.find_head(partial, max(0, self._searched - 3))
            if end < 0:
                doom = request_head.doomed(partial, self._searched)
                if doom is not None:
                    raise doom
                self._searched = len(partial)
                return False
            self._searched = 0
            raw = bytes(partial[:end])
            if raw != self._raw or self.plan.keep_until_s != NEVER:
                self.plan = services.admission.plan(raw)
                self._head = self.plan.upstream_head(self.peer, services.admission.hops)
                self._raw = raw
        except request_head.BadRequest as error:
            self.plan, self._raw, self.bytes_in = services.unreadable, b"", len(partial)
            self.refuse(Refusal(error.status, error.code, error.message), close=True)
            return False
        del partial[:end]
        self.started_ns, self.bytes_in = monotonic_ns(), end
        self._expected = end + self.plan.length if self.plan.repeats else -1
        self._begin(self.plan)
        return True

    def _begin(self, plan: ProxyPlan, gathered: bool = False) -> None:
        """Admit or refuse the request before its body is read. `gathered`: `message` is complete."""
        refused = plan.refusal or self.services.admission.admit(plan, self.peer, len(self._raw))
        if refused is not None:
            unread = not gathered and len(self.partial) < plan.length
            if not gathered:  # otherwise the body would be parsed as the next request
                del self.partial[: plan.length]
            self.refuse(refused, close=plan.close or unread)
        elif gathered:
            self._dispatch_message()
        else:
            self._await_body(plan)

    def _await_body(self, plan: ProxyPlan) -> None:
        self.since_s = self.services.state.now_s
        self.due_s = due_s(self.since_s, plan.length)
        if plan.head.expect_continue and len(self.partial) < plan.length:
            self.transport.write(CONTINUE)
            self.response.writer.bytes_out += len(CONTINUE)
        if plan.gathered:
            self.state = SMALL
            return
        self.upload.begin(self._head, plan.length)
        self._router.assign_upload(self.exchange, self.started_ns)
        self.upload.flow()

    def _read_small(self) -> bool:
        length = self.plan.length
        if len(self.partial) < length:
            return False
        self.message = self._head + self.partial[:length]
        del self.partial[:length]
        self.bytes_in += length
        self._dispatch_message()
        return True

    def _dispatch_message(self) -> None:
        """`message` holds the whole request: check its digest, pay for its bytes, queue it."""
        limiter, wanted = self.services.limiter, self.plan.digest
        if wanted is not None:
            digest = hashlib.sha256(self.message[len(self._head) :]).digest()
            refused = authorization.body_refusal(wanted, digest)
            if refused is not None:
                self.refuse(refused, close=self.plan.close)
                return
        if limiter.pay(self.bytes_in):
            self._assign()
        else:
            self.state = HELD
            self.upload.ticket = limiter.wait(self.bytes_in, self._assign)

    def _assign(self) -> None:
        self.upload.ticket = None
        self.state = QUEUED
        # A fresh timestamp: time spent waiting for bandwidth does not count as time in the queue.
        self._router.assign(self.exchange, monotonic_ns())

    def hand_over(self) -> bytes:
        """The bytes to send to the selected instance: the head and the received part of the body."""
        data = self.message
        if self.state == QUEUED:
            self.state = ASKED
        else:
            self.message = b""
            self.upload.passed()
        return data

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
            self.upload.extend_deadline()
            self.upload.flow()
        else:
            self._advance()
        if len(self.partial) > MAX_BACKLOG and self.state in (HELD, QUEUED, FLOW, ASKED) and not self.left:
            self.paused |= BACKLOG
        elif not self.paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The client's write buffer is full: stop reading the response and further requests."""
        self.exchange.hold(PRESSURE)
        self.pause(CHOKED)

    def resume_writing(self) -> None:
        self.exchange.go_on(PRESSURE)
        self.resume(CHOKED)

    # ------------------------------------------------------------------ endings

    def refuse(self, refusal: Refusal, close: bool) -> None:
        """Send the load balancer's own error response. `close`: then close the connection."""
        self.response.refuse(refusal, close or self.services.state.draining)

    def cut_off(self, refusal: Refusal) -> None:
        """End the request without its response: send `refusal`, or reset if a response has begun."""
        if self.state == CLOSED:
            return
        if self.response.begun:
            self.state = CLOSED
            self.response.break_off()
        else:
            unread = bool(self.left) or self.state == SMALL  # the body's rest must not be parsed as a request
            self.refuse(refusal, close=self.plan.close or unread)

    def finish(self, close: bool) -> None:
        """The response has been written: start the next request, or close the connection."""
        unread = bool(self.left)
        if unread or self.upload.ticket is not None:
            self.upload.end()
        self.message, self.started_ns = b"", 0
        if unread or (close and self.state in (HEAD, SMALL)):
            self._linger()
        elif close:
            self.state = CLOSED
            self.transport.close()
        else:
            self.state, self.since_s = IDLE, self.services.state.now_s
            if self.paused:
                self.resume(self.paused & ~CHOKED)
            elif self.partial:
                self._advance()

    def _linger(self) -> None:
        """Close after the client has read the response: closing with unread data would send a reset."""
        self.state, self.since_s, self._dropped = LINGER, self.services.state.now_s, 0
        self.partial.clear()
        self.resume(self.paused)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS has no half-close
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        state, self.state = self.state, CLOSED
        self.upload.end()
        self.response.writer.drop()
        if self.exchange.instance is not None:
            self.exchange.cancel(CANCELLED)
        else:
            self._router.forget(self.exchange)
        if state == SMALL:
            self.bytes_in += len(self.partial)
        if state in (SMALL, HELD, QUEUED, FLOW, ASKED):
            self.response.note(499)
        self._connections.left(self)
        # Break the reference cycles: the garbage collector rarely runs in this process.
        self.response.writer.close()
        del self.exchange, self.response, self.sink, self.upload
