"""One client connection: bytes in, requests handed in, answers out, in order.

Touches its transport and the dispatch of its front; the front owns everything that connections
share.  A connection works on one request at a time, so pipelined requests are answered in order
by construction; what arrives meanwhile waits in `partial`, and beyond a limit in the kernel.

All connections of a front receive into one buffer, since a read and its processing are one step
of the loop.  A large body is received straight into its slot instead: `sink` is what the next
read may fill, and it never reaches beyond the body's end.

    IDLE -> HEAD -> SMALL -> WAITING -> IDLE         SMALL: the body gathers in `partial`
                 -> BODY  -> WAITING -> SENDING      BODY: it flows into the slot
                 -> TASK                             TASK: the ASGI application has the request
    any  -> LINGER                                   refused with a body unread: RFC 9112, 9.6
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from twofold.server.front import responses, route
from twofold.server.front.outcomes import BUSY, DOWN, failure
from twofold.server.front.route import RoutePlan
from twofold.server.front.slot_table import LARGE_BYTES
from twofold.server.replica import frame
from twofold.wire import request_head
from twofold.wire.refusal import LATE_BODY, LATE_HEAD, Refusal, try_later

if TYPE_CHECKING:
    from twofold.server.front.process import Front

IDLE, HEAD, SMALL, BODY, WAITING, SENDING, TASK, LINGER, CLOSED = range(9)

RECEIVE_SIZE = 65536
SMALL_BODY = 49152  # gathered in memory when it comes in pieces; larger ones get their slot at once
SMALL_ANSWER = 65536  # copied and sent with its head; larger ones are sent from their slot
MAX_BACKLOG = 131072  # pipelined bytes held for later
LINGER_SECONDS = 2.0
DRAIN_IDLE = 0.5  # seconds of silence after which no request is on its way, most likely
MIN_BODY_RATE = 32768  # bytes per second below which a body, or an answer, is only holding a slot

RECEIVE = bytearray(RECEIVE_SIZE)
RECEIVE_VIEW = memoryview(RECEIVE)

GONE = 499


class Connection(asyncio.BufferedProtocol):
    __slots__ = (
        "advancing", "dispatch", "due", "expected", "front", "full", "partial", "paused", "plan",
        "progress", "raw", "request_id", "searched", "sending", "since", "sink", "slot", "started", "state",
        "table", "task", "transport",
    )  # fmt: skip

    def __init__(self, front: Front) -> None:
        # The life of the connection
        self.front = front
        self.dispatch = front.dispatch
        self.table = front.dispatch.table
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        # Reading
        self.state = IDLE
        self.since = front.now
        self.sink = RECEIVE_VIEW
        self.partial: bytearray | None = None
        self.searched = 0  # bytes of `partial` that hold no end of a head
        self.paused = False
        self.full = False  # the socket takes no more: the client reads more slowly than it asks
        self.advancing = False
        # The request in hand
        self.plan: RoutePlan = front.no_plan
        self.raw = b""  # the head that `plan` was made from
        self.expected = -1  # bytes of a read that holds such a head and its body, and nothing else
        self.slot = -1
        self.started = 0
        self.request_id = b""
        self.sending = -1  # the slot that an answer leaves from
        self.progress = 0
        self.due = 0.0
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        # resume_writing() must mean that nothing of a slot is left in the transport, and come always:
        # whatever the socket did not take at once, even one byte, calls pause_writing() first.
        self.transport.set_write_buffer_limits(high=0, low=0)
        self.front.connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.sink

    def buffer_updated(self, nbytes: int) -> None:
        """The hot path: a whole predict request in one read, with the head of the last one."""
        if nbytes == self.expected and self.state == IDLE and RECEIVE.startswith(self.raw):
            slot = self.table.take()
            if slot is not None:
                chosen = self.plan
                self.table.body(slot, chosen.length)[:] = RECEIVE_VIEW[nbytes - chosen.length : nbytes]
                self._submit(chosen, slot)
                return
        if self.state == IDLE:
            self.partial = bytearray(RECEIVE_VIEW[:nbytes])
            self._advance()
        else:
            self._more(nbytes)

    def _more(self, nbytes: int) -> None:
        if self.state == BODY:
            self.sink, self.since = self.sink[nbytes:], self.front.now
            if not self.sink:
                self.sink = RECEIVE_VIEW
                self._submit(self.plan, self.slot)
        elif self.state == LINGER:
            self.progress += nbytes
            if self.progress > request_head.MAX_HEAD * 128:
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
            self.state, self.since = HEAD, self.front.now
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
            self.plan = self.front.plans.get(raw) or self.front.remember(raw)
            self.expected = end + self.plan.length if self.plan.lane == route.EXPRESS else -1
        except request_head.BadRequest as error:
            self.plan = self.front.no_plan
            self._refuse(Refusal(error.status, error.code, error.message), close=True)
            return False
        del partial[:end]
        self._begin(self.plan)
        return True

    def _begin(self, chosen: RoutePlan) -> None:
        self.request_id = self.front.ids.mint(chosen.head.request_id)
        have = len(self.partial or b"")
        if chosen.refusal is not None:
            self._refuse(chosen.refusal, close=chosen.close)
        elif chosen.lane == route.EXPRESS and chosen.length > max(have, SMALL_BODY):
            self._receive_into_slot(chosen)
        else:
            self.state, self.since = SMALL, self.front.now
            if chosen.head.expect_continue and have < chosen.length:
                if chosen.lane == route.EXPRESS and not self.table.admits():
                    self._refuse_busy(unread=True)
                    return
                self.transport.write(responses.CONTINUE)
            if chosen.length == 0:
                self._read_small()

    def _receive_into_slot(self, chosen: RoutePlan) -> None:
        slot = self.table.take_large()
        if slot is None:
            self._refuse_busy(unread=True)
            return
        have = self.partial or bytearray()
        body = self.table.body(slot, chosen.length)
        body[: len(have)] = have
        self.slot, self.sink, self.partial = slot, body[len(have) :], None
        self.state, self.since = BODY, self.front.now
        self.due = self.since + self.front.http.body_timeout + chosen.length / MIN_BODY_RATE
        if chosen.head.expect_continue and not have:
            self.transport.write(responses.CONTINUE)

    def _read_small(self) -> bool:
        """True when the body was complete and its request went on its way."""
        chosen, partial = self.plan, self.partial if self.partial is not None else bytearray()
        if len(partial) < chosen.length:
            return False
        body = bytes(partial[: chosen.length])
        self.partial = partial[chosen.length :] or None
        if chosen.lane == route.APPLICATION:
            self.state = TASK
            self.task = self.front.run_application(self, chosen, body)
            return True
        slot = self.table.take()
        if slot is None:
            self._refuse_busy(unread=False)
        else:
            self.table.body(slot, len(body))[:] = body
            self._submit(chosen, slot)
        return True

    def _submit(self, chosen: RoutePlan, slot: int) -> None:
        self.plan, self.slot, self.state = chosen, slot, WAITING
        if not self.request_id:
            self.request_id = self.front.ids.mint(chosen.head.request_id)
        self.started = self.dispatch.submit(self, slot, chosen.length, chosen.kind, self.request_id)

    # ------------------------------------------------------------------ answers

    def answered(
        self, slot: int, size: int, outcome: int, queue_us: int, predict_us: int, encode_us: int
    ) -> None:
        """From dispatch: write the answer. The hot path is the first branch."""
        front, chosen = self.front, self.plan
        connection = front.connection or chosen.connection
        if outcome != frame.ANSWERED:
            self._fail(slot, size, outcome, (queue_us, predict_us, encode_us))
            return
        if size > SMALL_ANSWER:
            self._send_from_slot(slot, size, connection, (queue_us, predict_us, encode_us))
            return
        table = self.table
        start = table.answers_offset + slot * table.stride
        body = table.memory[start : start + size]
        if connection:
            spent = (queue_us, predict_us, encode_us)
            data = front.answers.head(spent, self.request_id, connection, size) + body
        else:
            data = front.answers.whole(queue_us, predict_us, encode_us, self.request_id, body)
        self._note(200, len(data), queue_us, predict_us, encode_us)
        self.transport.write(data)
        table.release(slot, size if size > chosen.length else chosen.length)
        self._finish(chosen.close or front.draining)

    def _fail(self, slot: int, size: int, outcome: int, spent: tuple[int, int, int]) -> None:
        refusal = failure(outcome, bytes(self.table.answer(slot, size)))
        if outcome < frame.RETRY:
            self.table.release(slot, self.plan.length)
        if self.state != WAITING:
            return  # the client left between the verdict and its delivery
        connection = self.front.connection or self.plan.connection
        payload = self.front.answers.error(refusal, self.request_id, connection, responses.timing(*spent))
        self._note(refusal.status, len(payload), *spent)
        self.transport.write(payload)
        self._finish(self.plan.close or self.front.draining)

    def _note(self, status: int, sent: int, queue_us: int, predict_us: int, encode_us: int) -> None:
        """One entry for the access log and the counters, which are both made in batches."""
        now, chosen, front = self.dispatch.now_ns, self.plan, self.front
        total_us = (now - self.started) // 1000 if 0 < self.started < now else 0
        front.journal.append((
            (now + front.wall_offset, chosen.message, status, predict_us, self.request_id, sent, total_us),
            queue_us, encode_us, chosen.length,
        ))  # fmt: skip

    def _send_from_slot(self, slot: int, size: int, connection: bytes, spent: tuple[int, int, int]) -> None:
        """A large answer leaves from the slot itself, which is released when all has been sent."""
        head = self.front.answers.head(spent, self.request_id, connection, size)
        self._note(200, len(head) + size, *spent)
        self.state, self.since, self.sending, self.progress = SENDING, self.front.now, slot, -1
        self.due = self.since + self.front.http.body_timeout + size / MIN_BODY_RATE
        self.transport.write(head)
        self.transport.write(self.table.answer(slot, size))
        if not self.full:
            self.resume_writing()

    def pause_writing(self) -> None:
        """The socket is full. What the client asks for next waits until it has read this."""
        self.full = self.paused = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """All has left."""
        self.full = False
        if self.state == SENDING:
            self._give_back()
            self._finish(self.plan.close or self.front.draining)
        elif self.paused:
            self.paused = False
            self.transport.resume_reading()

    def _give_back(self) -> None:
        """The slot that was sent from, if it was one."""
        if self.sending >= 0:
            self.table.release(self.sending, LARGE_BYTES + 1)
            self.sending = -1

    def _refuse_busy(self, unread: bool) -> None:
        refusal = DOWN if self.table.unavailable else BUSY
        later = try_later(refusal.status, refusal.code, refusal.message, self.dispatch.retry_after())
        self._refuse(later, self.plan.close or unread)

    def _refuse(self, refusal: Refusal, close: bool) -> None:
        front = self.front
        close = close or front.draining
        if not self.request_id:
            self.request_id = front.ids.mint(b"")
        connection = b"connection: close\r\n" if close else self.plan.connection
        self.started = 0
        payload = front.answers.error(refusal, self.request_id, connection)
        self._note(refusal.status, len(payload), 0, 0, 0)
        self.transport.write(payload)
        if close:
            self.linger()
        else:
            self._finish(False)

    def linger(self) -> None:
        """Close, but let the client read the answer first: a body unread would turn it into a reset."""
        self.state, self.since, self.progress, self.partial = LINGER, self.front.now, 0, None
        self.sink = RECEIVE_VIEW
        self.transport.write_eof()

    def finish_task(self, status: int, sent: int, close: bool) -> None:
        """From the front: the ASGI application has answered."""
        self.task = None
        if self.state == TASK:
            self.started = 0
            self._note(status, sent, 0, 0, 0)
            self._finish(close)

    def _finish(self, close: bool) -> None:
        """The answer is on its way: next request, or the end."""
        self.request_id = b""
        if close:
            self.state = CLOSED
            self.transport.close()
            return
        self.state, self.since = IDLE, self.front.now
        if self.full:
            self.state, self.progress, self.due = SENDING, -1, float("inf")
            return
        if self.paused:
            self.paused = False
            self.transport.resume_reading()
        if self.partial:
            self._advance()

    # ------------------------------------------------------------------ endings

    def eof_received(self) -> bool:
        """A client that closes its side has left (as HAProxy's abortonclose has it)."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        state, self.state = self.state, CLOSED
        if state == WAITING:
            self.dispatch.cancel(self, self.slot)
            self._note(GONE, 0, 0, 0, 0)
        elif state == BODY:
            self.table.release(self.slot, self.plan.length)
        elif state == SENDING:
            self._give_back()
        elif state == TASK and self.task is not None:
            self.task.cancel()
        self.front.disconnected(self)

    def check(self, now: float) -> None:
        """Once a second: has this connection been silent for too long?"""
        http, silent = self.front.http, now - self.since
        if self.state == IDLE:
            if silent > (DRAIN_IDLE if self.front.draining else http.idle_timeout):
                self.transport.close()
        elif (
            (self.state == HEAD and silent > http.head_timeout)
            or (self.state in (SMALL, BODY) and silent > http.body_timeout)
            or (self.state == BODY and now > self.due)
        ):
            self._time_out()
        elif self.state == LINGER and silent > LINGER_SECONDS:
            self.transport.abort()
        elif self.state in (SENDING, CLOSED):
            left = self.transport.get_write_buffer_size()
            if self.state == SENDING and now > self.due:
                self.transport.abort()
            elif left != self.progress:
                self.progress, self.since = left, now
            elif silent > http.body_timeout:
                self.transport.abort()

    def _time_out(self) -> None:
        if self.state == BODY:
            self.table.release(self.slot, self.plan.length)
            self.slot = -1
        elif self.state == HEAD:
            self.plan = self.front.no_plan
        self._refuse(LATE_HEAD if self.state == HEAD else LATE_BODY, close=True)
