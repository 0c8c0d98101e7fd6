"""One client connection: bytes in, requests on their way, answers out, in order.

Touches its transport and the slots of its front; the front owns everything that connections share.
A connection works on one request at a time, its `exchange`, so pipelined requests are answered in
order by construction; what arrives meanwhile waits in `partial`, and beyond a limit in the kernel.

All connections of a front receive into one buffer, since a read and its processing are one step
of the loop.  A large body is received straight into its slot instead: `sink` is what the next
read may fill, and it never reaches beyond the body's end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from twofold.server.front import responses, route
from twofold.server.front.asgi import AsgiOutcome
from twofold.server.front.exchange import NO_SLOT, HttpExchange
from twofold.server.front.route import RoutePlan
from twofold.server.front.slot_table import LARGE_BYTES
from twofold.wire import request_head
from twofold.wire.refusal import LATE_BODY, LATE_HEAD, Refusal

if TYPE_CHECKING:
    from twofold.server.front.process import Front

# States of a connection.  Integers, because the hot path compares them.
IDLE = 0  # between two requests
HEAD = 1  # a head arrives
SMALL = 2  # a body arrives in `partial`
BODY = 3  # a body arrives in its slot
WAITING = 4  # a replica has the request
TASK = 5  # the ASGI application has the request
SENDING = 6  # a large answer leaves from its slot
FLUSHING = 7  # the answer was written, and the socket has not taken all of it
LINGER = 8  # refused with a body unread: the client may read the refusal first (RFC 9112, 9.6)
CLOSED = 9  # closed, or about to be once the transport has sent what it holds

# Every move that a connection makes; a test drives connections through all of them, and no other.
MOVES: dict[int, frozenset[int]] = {
    IDLE: frozenset({HEAD, WAITING, CLOSED}),
    HEAD: frozenset({SMALL, BODY, IDLE, FLUSHING, LINGER, CLOSED}),
    SMALL: frozenset({WAITING, TASK, IDLE, FLUSHING, LINGER, CLOSED}),
    BODY: frozenset({WAITING, LINGER, CLOSED}),
    WAITING: frozenset({IDLE, SENDING, FLUSHING, CLOSED}),
    TASK: frozenset({IDLE, FLUSHING, CLOSED}),
    SENDING: frozenset({IDLE, CLOSED}),
    FLUSHING: frozenset({IDLE, CLOSED}),
    LINGER: frozenset({CLOSED}),
    CLOSED: frozenset(),
}

RECEIVE_SIZE = 65536
SMALL_BODY = 49152  # gathered in memory when it comes in pieces; larger ones get their slot at once
MAX_BACKLOG = 131072  # pipelined bytes held for later
MAX_DROPPED = request_head.MAX_HEAD * 128  # bytes read and dropped for a client that was refused
MIN_BODY_RATE = 32768  # bytes per second below which a body, or an answer, is only holding a slot

RECEIVE = bytearray(RECEIVE_SIZE)
RECEIVE_VIEW = memoryview(RECEIVE)


class Connection(asyncio.BufferedProtocol):
    __slots__ = (
        "advancing", "body_slot", "dropped", "exchange", "expected", "front", "full", "partial", "paused",
        "raw", "searched", "sending_slot", "since_s", "sink", "state", "table", "task", "transfer_due_s",
        "transport", "unsent",
    )  # fmt: skip

    def __init__(self, front: Front) -> None:
        self.front = front
        self.table = front.dispatch.table
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.exchange = HttpExchange(front, self)
        self.state = IDLE
        self.since_s = front.now_s  # when it came to its state, or bytes last moved in it
        self.transfer_due_s = 0.0  # when the body must have arrived, or the answer have left, at any pace
        # Reading
        self.sink = RECEIVE_VIEW
        self.partial: bytearray | None = None
        self.searched = 0  # bytes of `partial` that hold no end of a head
        self.raw = b""  # the last head, that of the exchange's plan
        self.expected = -1  # bytes of a read that holds such a head and its body, and nothing else
        self.body_slot = NO_SLOT  # in BODY
        self.paused = False  # reading
        self.advancing = False
        self.dropped = 0  # bytes, in LINGER
        # Writing
        self.full = False  # the socket takes no more: the client reads more slowly than it asks
        self.sending_slot = NO_SLOT  # in SENDING
        self.unsent = -1  # bytes in the transport when timeouts.check() last looked; -1: it has not yet
        self.task: asyncio.Task[None] | None = None  # in TASK

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        # resume_writing() must mean that nothing of a slot is left in the transport, and come always:
        # whatever the socket did not take at once, even one byte, calls pause_writing() first.
        self.transport.set_write_buffer_limits(high=0, low=0)
        self.front.connected(self)

    # ------------------------------------------------------------------ reading

    def get_buffer(self, sizehint: int) -> memoryview:
        """What the next read may fill."""
        return self.sink

    def buffer_updated(self, nbytes: int) -> None:
        """The hot path: a whole predict request in one read, with the head of the last one."""
        if nbytes == self.expected and self.state == IDLE and RECEIVE.startswith(self.raw):
            slot = self.table.take()
            if slot is not None:
                exchange = self.exchange
                length = exchange.plan.length
                self.table.body(slot, length)[:] = RECEIVE_VIEW[nbytes - length : nbytes]
                self.state = WAITING
                exchange.submit(slot)
                return
        if self.state == IDLE:
            self.partial = bytearray(RECEIVE_VIEW[:nbytes])
            self._advance()
        else:
            self._more(nbytes)

    def _more(self, nbytes: int) -> None:
        if self.state == BODY:
            self.sink, self.since_s = self.sink[nbytes:], self.front.now_s
            if not self.sink:
                slot, self.body_slot = self.body_slot, NO_SLOT
                self.sink, self.state = RECEIVE_VIEW, WAITING
                self.exchange.submit(slot)
        elif self.state == LINGER:
            self.dropped += nbytes
            if self.dropped > MAX_DROPPED:
                self.transport.abort()
        else:
            self.partial = self.partial or bytearray()
            self.partial += RECEIVE_VIEW[:nbytes]
            if self.state in (HEAD, SMALL):
                self._advance()
            elif len(self.partial) > MAX_BACKLOG and not self.paused:
                self.paused = True
                self.transport.pause_reading()

    def _advance(self) -> None:
        """Take as many steps as `partial` allows: a loop, since a refusal ends in here again."""
        if self.advancing:
            return
        self.advancing = True
        while self.partial and self.state in (IDLE, HEAD, SMALL):
            if self.state != SMALL and not self._read_head():
                break
            if self.state == SMALL and not self._read_small():
                break
        self.advancing = False

    def _read_head(self) -> bool:
        """True when a head was complete and its request has begun."""
        partial = self.partial
        assert partial is not None
        if self.state == IDLE:
            self.state, self.since_s = HEAD, self.front.now_s
        try:
            end = request_head.find_head(partial, max(0, self.searched - 3))
            if end < 0:
                doom = request_head.doomed(partial, self.searched)
                if doom is not None:
                    raise doom
                self.searched = len(partial)
                return False
            self.searched = 0
            self.raw = raw = bytes(partial[:end])
            plan = self.front.plans.get(raw) or self.front.remember(raw)
            self.expected = end + plan.length if plan.lane == route.EXPRESS else -1
        except request_head.BadRequest as error:
            self.exchange.plan = self.front.no_plan
            self.exchange.refuse(Refusal(error.status, error.code, error.message), close=True)
            return False
        del partial[:end]
        self.exchange.begin(plan)
        self._begin(plan)
        return True

    def _begin(self, plan: RoutePlan) -> None:
        have = len(self.partial or b"")
        if plan.refusal is not None:
            self.exchange.refuse(plan.refusal, close=plan.close)
        elif plan.lane == route.EXPRESS and plan.length > max(have, SMALL_BODY):
            self._receive_into_slot(plan)
        else:
            self.state, self.since_s = SMALL, self.front.now_s
            if plan.head.expect_continue and have < plan.length:
                if plan.lane == route.EXPRESS and not self.table.admits():
                    self.exchange.refuse_busy(unread=True)
                    return
                self.transport.write(responses.CONTINUE)
            if plan.length == 0:
                self._read_small()

    def _receive_into_slot(self, plan: RoutePlan) -> None:
        slot = self.table.take_large()
        if slot is None:
            self.exchange.refuse_busy(unread=True)
            return
        have = self.partial or bytearray()
        body = self.table.body(slot, plan.length)
        body[: len(have)] = have
        self.body_slot, self.sink, self.partial = slot, body[len(have) :], None
        self._transfer(BODY, plan.length)
        if plan.head.expect_continue and not have:
            self.transport.write(responses.CONTINUE)

    def _read_small(self) -> bool:
        """True when the body was complete and its request went on its way."""
        plan, partial = self.exchange.plan, self.partial if self.partial is not None else bytearray()
        if len(partial) < plan.length:
            return False
        body = bytes(partial[: plan.length])
        self.partial = partial[plan.length :] or None
        if plan.lane == route.APPLICATION:
            self.state = TASK
            self.task = self.front.run_application(self, plan, body)
            return True
        slot = self.table.take()
        if slot is None:
            self.exchange.refuse_busy(unread=False)
        else:
            self.table.body(slot, len(body))[:] = body
            self.state = WAITING
            self.exchange.submit(slot)
        return True

    # ------------------------------------------------------------------ writing

    def send_from_slot(self, head: bytes, slot: int, size: int) -> None:
        """A large answer leaves from the slot itself, which is released when all has been sent."""
        self.sending_slot, self.unsent = slot, -1
        self._transfer(SENDING, size)
        self.transport.write(head)
        self.transport.write(self.table.answer(slot, size))
        if not self.full:
            self.resume_writing()

    def _transfer(self, state: int, size: int) -> None:
        """Enter BODY or SENDING for `size` bytes, which may take as long as the slowest client allowed."""
        self.state, self.since_s = state, self.front.now_s
        self.transfer_due_s = self.since_s + self.front.http.body_timeout + size / MIN_BODY_RATE

    def pause_writing(self) -> None:
        """The socket is full. What the client asks for next waits until it has read this."""
        self.full = self.paused = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """All has left."""
        self.full = False
        if self.state == SENDING:
            slot, self.sending_slot = self.sending_slot, NO_SLOT
            self.table.release(slot, LARGE_BYTES + 1)
        if self.state in (SENDING, FLUSHING):
            self.finish(self.exchange.plan.close or self.front.draining)
        elif self.paused:
            self.paused = False
            self.transport.resume_reading()

    def finish(self, close: bool) -> None:
        """The answer was written: the next request, or the end."""
        if close:
            self.state = CLOSED
            self.transport.close()
            return
        self.since_s = self.front.now_s
        if self.full:
            self.state, self.unsent = FLUSHING, -1
            return
        self.state = IDLE
        if self.paused:
            self.paused = False
            self.transport.resume_reading()
        if self.partial:
            self._advance()

    def finish_task(self, outcome: AsgiOutcome) -> None:
        """From the front: the ASGI application has answered."""
        self.task = None
        if self.state == TASK:
            self.exchange.record_application(outcome)
            self.finish(outcome.close)

    def linger(self) -> None:
        """Close, but let the client read the answer first: a body unread would turn it into a reset."""
        self.state, self.since_s, self.dropped, self.partial = LINGER, self.front.now_s, 0, None
        self.sink = RECEIVE_VIEW
        self.transport.write_eof()

    # ------------------------------------------------------------------ endings

    def time_out(self) -> None:
        """Refuse a request whose head or body did not arrive in time."""
        late = LATE_BODY
        if self.state == BODY:
            slot, self.body_slot = self.body_slot, NO_SLOT
            self.table.release(slot, self.exchange.plan.length)
        elif self.state == HEAD:
            late, self.exchange.plan = LATE_HEAD, self.front.no_plan
        self.exchange.refuse(late, close=True)

    def eof_received(self) -> bool:
        """A client that closes its side has left (as HAProxy's abortonclose has it)."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or the connection was closed: give back what the request has taken."""
        state, self.state = self.state, CLOSED
        if state == WAITING:
            self.exchange.cancel()
        elif state == BODY:
            self.table.release(self.body_slot, self.exchange.plan.length)
        elif state == SENDING:
            self.table.release(self.sending_slot, LARGE_BYTES + 1)
        elif state == TASK and self.task is not None:
            self.task.cancel()
        self.front.disconnected(self)
