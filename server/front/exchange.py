"""One request of a connection and its answer: handed in, answered or refused, recorded.

Touches the dispatch and the slots of its front, and writes to the connection's transport.  A
connection works on one request at a time, so it has one exchange, which each request uses again:
an object for each request would cost the hot path.

An exchange ends with one record, for the access log and the counters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twofold.server.front import responses
from twofold.server.front.asgi import AsgiOutcome
from twofold.server.front.outcomes import BUSY, COUNTED, DOWN, failure
from twofold.server.front.route import RoutePlan
from twofold.server.replica import frame
from twofold.wire.refusal import Refusal, try_later

if TYPE_CHECKING:
    from twofold.server.front.http1 import Connection
    from twofold.server.front.process import Front

SMALL_ANSWER = 65536  # copied and sent with its head; larger ones are sent from their slot
GONE = 499  # the status under which a request is recorded whose client left before the answer

NO_SLOT = -1


class HttpExchange:
    """The request that `plan` describes, from its head to its record."""

    __slots__ = ("connection", "dispatch", "front", "plan", "request_id", "slot", "started_ns", "table")

    def __init__(self, front: Front, connection: Connection) -> None:
        self.front = front
        self.connection = connection
        self.dispatch = front.dispatch
        self.table = front.dispatch.table
        self.plan: RoutePlan = front.no_plan
        self.request_id = b""  # empty between two requests
        self.slot = NO_SLOT  # of the last request that was handed in
        self.started_ns = 0  # when it was handed in (monotonic)

    def begin(self, plan: RoutePlan) -> None:
        """A head has arrived."""
        self.plan = plan
        self.request_id = self.front.ids.mint(plan.head.request_id)

    def submit(self, slot: int) -> None:
        """The body lies in `slot`: hand it in."""
        plan = self.plan
        self.slot = slot
        if not self.request_id:  # begin() is skipped for a head that repeats the last one
            self.request_id = self.front.ids.mint(plan.head.request_id)
        self.started_ns = self.dispatch.submit(self, slot, plan.length, plan.kind, self.request_id)

    def answered(
        self, slot: int, size: int, outcome: int, queue_us: int, predict_us: int, encode_us: int
    ) -> None:
        """From dispatch: write the answer. The hot path is a small one of a connection that stays open."""
        front, plan, table, connection = self.front, self.plan, self.table, self.connection
        if outcome != frame.ANSWERED:
            self._fail(slot, size, outcome, (queue_us, predict_us, encode_us))
            return
        fields = front.connection or plan.connection
        if size > SMALL_ANSWER:
            head = front.answers.head((queue_us, predict_us, encode_us), self.request_id, fields, size)
            self._record(200, len(head) + size, size, queue_us, predict_us, encode_us)
            connection.send_from_slot(head, slot, size)
            return
        start = table.answers_offset + slot * table.stride
        body = table.memory[start : start + size]
        if fields:
            spent_us = (queue_us, predict_us, encode_us)
            data = front.answers.head(spent_us, self.request_id, fields, size) + body
        else:
            data = front.answers.whole(queue_us, predict_us, encode_us, self.request_id, body)
        self._record(200, len(data), size, queue_us, predict_us, encode_us)
        connection.transport.write(data)
        table.release(slot, size if size > plan.length else plan.length)
        connection.finish(plan.close or front.draining)

    def _fail(self, slot: int, size: int, outcome: int, spent_us: tuple[int, int, int]) -> None:
        front, plan = self.front, self.plan
        refusal = failure(outcome, bytes(self.table.answer(slot, size)))
        if outcome < frame.RETRY:
            self.table.release(slot, plan.length)
        if slot != self.slot:
            return  # the client left between the quarantine's refusal and this delivery
        if (cell := COUNTED.get(outcome)) is not None:
            front.cells[cell] += 1
        fields = front.connection or plan.connection
        payload = front.answers.error(refusal, self.request_id, fields, responses.timing(*spent_us))
        self._record(refusal.status, len(payload), responses.body_size(payload), *spent_us)
        self.connection.transport.write(payload)
        self.connection.finish(plan.close or front.draining)

    def refuse(self, refusal: Refusal, close: bool) -> None:
        """Answer without a replica; `close` because the request's end cannot be waited for."""
        front = self.front
        close = close or front.draining
        if not self.request_id:
            self.request_id = front.ids.mint(b"")
        fields = responses.CLOSE if close else self.plan.connection
        payload = front.answers.error(refusal, self.request_id, fields)
        self.started_ns = 0  # it was never handed in
        self._record(refusal.status, len(payload), responses.body_size(payload), 0, 0, 0)
        self.connection.transport.write(payload)
        if close:
            self.connection.linger()
        else:
            self.connection.finish(False)

    def refuse_busy(self, unread: bool) -> None:
        """No slot can be had: 503. `unread` if the body has not arrived."""
        refusal = DOWN if self.table.unavailable else BUSY
        later = try_later(refusal.status, refusal.code, refusal.message, self.dispatch.retry_after())
        self.refuse(later, self.plan.close or unread)

    def record_application(self, outcome: AsgiOutcome) -> None:
        """The ASGI application has answered."""
        self.started_ns = 0
        self._record(outcome.status, outcome.sent, outcome.body, 0, 0, 0)

    def cancel(self) -> None:
        """The client left while its request was handed in."""
        self.dispatch.cancel(self, self.slot)
        self.slot = NO_SLOT
        self._record(GONE, 0, 0, 0, 0, 0)

    def _record(
        self, status: int, sent: int, body: int, queue_us: int, predict_us: int, encode_us: int
    ) -> None:
        """One entry for the access log and the counters, which are both made in batches; the exchange ends.

        `sent` is the bytes of the answer, and `body` those of its body.
        """
        plan, front, now_ns, started_ns = self.plan, self.front, self.dispatch.now_ns, self.started_ns
        # now_ns may be older than a request that came since the last answers and has failed already.
        total_us = (now_ns - started_ns) // 1000 if 0 < started_ns < now_ns else 0
        front.journal.append((
            (now_ns + front.wall_offset_ns, plan.message, status, predict_us,
             self.request_id, sent, total_us),
            queue_us, encode_us, plan.length, body,
        ))  # fmt: skip
        self.request_id = b""
