"""One client connection of the load balancer: requests in, responses out, in order.

Touches its transport.  The connection has one request in hand; bytes that arrive meanwhile wait in
`partial`, and beyond a limit in the kernel.  The states are those of downstream.py.

A small body is gathered before an instance is asked, so that the request can be sent again while no byte of
a response has come.  A larger one flows (upload.py).
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

MAX_BACKLOG = 131072  # pipelined bytes held for later
MOST_STEPS = 4  # refused requests in a row, before others have their turn
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
        self._searched = 0  # bytes of `partial` that hold no end of a head
        self._advancing = False
        self._dropped = 0  # bytes of a refused body
        # The request in hand
        self._head = b""  # the bytes for an instance
        self._raw = b""  # the head that `plan` was made from
        self._expected = -1  # bytes of a read that holds such a head and its body, and nothing else

    def connection_made(self, transport: Any) -> None:
        """Let it in if its address may come in and there is room."""
        self.transport = transport
        self.transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        self._connections.joined(self)
        if not self.peer:  # a PROXY line has not named it
            peer = transport.get_extra_info("peername")
            self.peer = peer[0] if isinstance(peer, tuple) else ""
        if not self.services.admission.admits(self.peer):
            self.services.cells[shared_memory.UNAUTHORISED] += 1
            self.transport.abort()
        elif not self._connections.has_room(self.services.state.now_s):
            self.refuse(CONNECTION_LIMITED, close=True)

    # ------------------------------------------------------------------ reading

    def data_received(self, data: bytes) -> None:
        """The hot path: a whole small request in one read, with the head of the last one."""
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
            self.upload.take(data)  # as it came: large bodies are not to be copied
        else:
            self.partial += data
            if self.state in (IDLE, HEAD, SMALL):
                self._advance()
            elif self.state == FLOW and self.left:
                self.upload.flow()
            elif len(self.partial) > MAX_BACKLOG:
                self.pause(BACKLOG)

    def _advance(self) -> None:
        """Take as many steps as `partial` allows: a loop, since a refusal ends in here again."""
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
        """True when a head was complete, and its request has begun or was refused."""
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
            if raw != self._raw or self.plan.keep_until != NEVER:
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
        """Admit the request, before its body is read."""
        refused = plan.refusal or self.services.admission.admit(plan, self.peer, len(self._raw))
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
        self._gathered()
        return True

    def _gathered(self) -> None:
        """The whole request is here: pay for it, then ask an instance."""
        limiter, wanted = self.services.limiter, self.plan.digest
        if wanted is not None:
            digest = hashlib.sha256(self.message[len(self._head) :]).digest()
            refused = authorization.body_refusal(wanted, digest)
            if refused is not None:
                self.refuse(refused, close=self.plan.close)
                return
        if limiter.pay(self.bytes_in):
            self._ask()
        else:
            self.state = HELD
            self.upload.ticket = limiter.wait(self.bytes_in, self._ask)

    def _ask(self) -> None:
        self.upload.ticket = None
        self.state = QUEUED
        # Bandwidth may have held it back until now: neither the queue nor an instance is to blame for that.
        self._router.assign(self.exchange, monotonic_ns())

    def hand_over(self) -> bytes:
        """The bytes for the instance that takes the request: its head, and the part of the body present."""
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
            self.upload.excuse()
            self.upload.flow()
        else:
            self._advance()
        if len(self.partial) > MAX_BACKLOG and self.state in (HELD, QUEUED, FLOW, ASKED) and not self.left:
            self.paused |= BACKLOG  # what is held is enough for now
        elif not self.paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The client does not take its responses: nothing more is read for it, nor begun."""
        self.exchange.hold(PRESSURE)
        self.pause(CHOKED)

    def resume_writing(self) -> None:
        self.exchange.go_on(PRESSURE)
        self.resume(CHOKED)

    # ------------------------------------------------------------------ endings

    def refuse(self, refusal: Refusal, close: bool) -> None:
        """The load balancer answers by itself."""
        self.response.refuse(refusal, close or self.services.state.draining)

    def cut_off(self, refusal: Refusal) -> None:
        """There will be no response, or no rest of it: say why if nothing has been sent, else break off."""
        if self.state == CLOSED:
            return
        if self.response.begun:
            self.state = CLOSED
            self.response.break_off()
        else:
            unread = bool(self.left) or self.state == SMALL  # the rest of the body is not the next request
            self.refuse(refusal, close=self.plan.close or unread)

    def finish(self, close: bool) -> None:
        """The response is on its way: next request, or the end."""
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
        """Close, but let the client read the response first: a body unread would turn it into a reset."""
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
        # They refer to this object, and no cycle must wait for the collector, which is rare here.
        self.response.writer.close()
        del self.exchange, self.response, self.sink, self.upload
