"""The answer to the request that a client has in hand: what has been sent of it, and how it ends.

Touches the client's transport for writing, and pauses the instance's for reading: an answer flows
no faster than its client takes it and the bandwidth allows.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING

from twofold.loadbalancer.bandwidth.fair_queue import LEAST_QUANTUM
from twofold.loadbalancer.http import error_responses, response_head
from twofold.loadbalancer.http.forwarding import answer_fields
from twofold.loadbalancer.http.response_head import BadResponse, ResponseHead
from twofold.loadbalancer.shared_memory import BYTES_IN
from twofold.wire import chunked
from twofold.wire.refusal import Refusal
from twofold.wire.request_head import STATUS_LINES

if TYPE_CHECKING:
    from twofold.loadbalancer.bandwidth.fair_queue import Ticket
    from twofold.loadbalancer.proxy.client import Client

BANDWIDTH, PRESSURE, CHOKED = 1, 4, 16  # of a client: see client.py
HELD = 3  # a state of a client
MAX_INTERIM = 64  # interim answers to one request
CLOSE = b"connection: close\r\n"


class ClientResponse:
    __slots__ = (
        "begun",
        "bytes_out",
        "chunking",
        "client",
        "close",
        "ending",
        "heard",
        "held",
        "held_at",
        "held_back",
        "interims",
        "pieces",
        "progress",
        "request_id",
        "since",
        "small",
        "spent_us",
        "status",
        "ticket",
    )

    def __init__(self, client: Client) -> None:
        self.client = client
        self.pieces: deque[bytes] = deque()  # wait for bandwidth, in order
        self.ticket: Ticket | None = None
        self.held_back = 0  # bytes of `pieces` that do not take their turn yet
        self.progress = -1
        self.since = self.heard = 0.0  # when the client last took something, when the instance last sent
        self.held_at = 0  # since when (ns) the instance's answer is not being read
        self._reset()

    def _reset(self) -> None:
        self.held = 0  # why the instance's answer is not being read
        self.begun = False  # a byte of the answer has been sent, or is about to be
        self.ending = False  # all of it is in `pieces` or in the transport
        self.chunking = False
        self.small = False  # all of it is worth one turn at most
        self.close = False
        self.status = 0
        self.bytes_out = 0
        self.request_id = b""
        self.interims = 0
        self.spent_us = 0  # by the instance

    # ------------------------------------------------------------------ answers in one piece

    def wait(self, data: bytes, status: int, request_id: bytes, spent_us: int) -> None:
        """A whole answer that must wait for bandwidth; the instance needed so long for it."""
        self.spent_us = spent_us
        self.begun, self.status, self.request_id, self.ending = True, status, request_id, True
        self.client.link = self.client.upstream = None  # they are free for others
        self.small = len(data) <= self.client.proxy.limiter.quantum
        self._wait(data)

    def refuse(self, refused: Refusal, close: bool) -> None:
        """The load balancer's own answer."""
        self.drop()  # interim answers that have not gone out
        client, proxy = self.client, self.client.proxy
        connection = CLOSE if close else client.plan.connection
        self.request_id = proxy.ids.mint(client.plan.head.request_id)
        data = error_responses.answer(refused, self.request_id, proxy.date, connection)
        if client.plan.to_head:
            data = data[: data.index(b"\r\n\r\n") + 4]
        self.begun = self.ending = True
        self.status, self.close = refused.status, close
        self.pieces.append(data)
        # Who goes on and on with faulty requests gets no more bandwidth than who sends good ones.
        # Refusals for want of something neither wait nor are charged for: they are to spare bandwidth.
        size = client.bytes_in + len(data)
        if not close and refused.faulty and not proxy.limiter.pay(size):
            client.state = HELD
            self.ticket = proxy.limiter.wait(size, self._paid)
        else:
            self._paid()

    # ------------------------------------------------------------------ an answer that flows

    def interim(self, head: ResponseHead) -> None:
        """1xx: passed on to those who know it (RFC 9110, 15.2); 100 was ours to say."""
        self.interims += 1
        if self.interims > MAX_INTERIM:
            raise BadResponse("it sends one interim answer after the other")
        if head.status != 100 and self.client.plan.head.version == (1, 1):
            fields = b"".join(
                b"%b: %b\r\n" % field for field in answer_fields(head.fields) if field[0] != b"content-length"
            )
            data = b"HTTP/1.1 %d %b\r\n%b\r\n" % (head.status, head.reason, fields)
            if len(data) <= LEAST_QUANTUM:  # or a part of it could have gone when the request is given up
                self._send(data)

    def begin(self, head: ResponseHead) -> None:
        client, proxy = self.client, self.client.proxy
        modern = client.plan.head.version == (1, 1)
        unframed = head.framing in (response_head.CHUNKED, response_head.TO_THE_END)
        self.chunking = unframed and modern
        self.close = client.plan.close or proxy.draining or bool(client.left) or (unframed and not modern)
        self.begun, self.status = True, head.status
        self.request_id = head.request_id or proxy.ids.mint(client.plan.head.request_id)
        without = {b"opc-request-id"}
        if not self.chunking:
            without.add(b"trailer")
        if head.status == 204:  # RFC 9110, 8.6
            without.add(b"content-length")
        lines = [b"%b: %b\r\n" % field for field in answer_fields(head.fields) if field[0] not in without]
        lines.append(b"opc-request-id: %b\r\n" % self.request_id)
        if self.chunking:
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(CLOSE if self.close else client.plan.connection)
        status = (
            b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason) if head.reason else STATUS_LINES[head.status]
        )
        data = b"%b%b\r\n" % (status, b"".join(lines))
        self.small = not unframed and len(data) + head.length <= proxy.limiter.quantum
        if client.paused & CHOKED:
            self.hold(PRESSURE)
        self._send(data)

    def relay(self, piece: bytes) -> None:
        if piece:
            self._send(chunked.chunk(piece) if self.chunking else piece)

    def end(self, trailers: list[tuple[bytes, bytes]]) -> None:
        """The instance is through; what waits for bandwidth still goes out."""
        if self.chunking:
            self._send(chunked.last_chunk(trailers))
        self.ending = True
        upstream = self.client.upstream
        if self.held:
            self._release()  # it will carry other answers
        if upstream is not None:
            self.spent_us = ((upstream.heard_at or monotonic_ns()) - upstream.asked_at) // 1000
        self.held = 0
        self.client.link = self.client.upstream = None  # they are free for others, while pieces wait here
        if not self.pieces:
            self._end()

    # ------------------------------------------------------------------ sending

    def _send(self, data: bytes) -> None:
        self.heard = self.client.proxy.now
        limiter = self.client.proxy.limiter
        if self.pieces:
            self.pieces.append(data)
            self._hold_back(len(data))
        elif not limiter.pay(len(data)):
            self._wait(data)
        else:
            self.bytes_out += len(data)
            self.client.transport.write(data)

    def _wait(self, data: bytes) -> None:
        limiter = self.client.proxy.limiter
        size = limiter.quantum
        self.pieces.extend(data[start : start + size] for start in range(0, len(data), size))
        self._hold_back(len(data))
        self.hold(BANDWIDTH)
        self._wait_on()

    def _wait_on(self) -> None:
        """For the first piece.

        A small answer is let out before anything else, in however many pieces it comes: its request has
        waited for it.
        """
        size = len(self.pieces[0])
        self._hold_back(-size)
        self.ticket = self.client.proxy.limiter.wait(size, self._paid, urgent=self.small, answer=True)

    def _hold_back(self, nbytes: int) -> None:
        self.held_back += nbytes
        self.client.proxy.limiter.held += nbytes

    def _paid(self) -> None:
        """The first piece is paid for."""
        client, self.ticket = self.client, None
        data = self.pieces.popleft()
        self.bytes_out += len(data)
        client.transport.write(data)
        if self.pieces:
            self._wait_on()
        elif self.ending:
            self._end()
        else:
            self.go_on(BANDWIDTH)

    def hold(self, reason: int) -> None:
        """A reason that comes before there is an instance is looked for again when its answer begins.

        One that comes with the last of an answer is none for its instance, which is already others'.
        """
        upstream = self.client.upstream
        if upstream is None or upstream.client is not self.client:
            return
        if not self.held and not upstream.transport.is_closing():
            upstream.transport.pause_reading()
            self.held_at = monotonic_ns()
        self.held |= reason

    def go_on(self, reason: int) -> None:
        if self.held == reason:
            self._release()
        self.held &= ~reason

    def _release(self) -> None:
        upstream = self.client.upstream
        if upstream is not None and not upstream.transport.is_closing():
            upstream.transport.resume_reading()
            upstream.excuse(monotonic_ns() - self.held_at)
            self.heard = self.client.proxy.now

    # ------------------------------------------------------------------ endings

    def _end(self) -> None:
        self.note(self.status)
        close = self.close  # only if the client was told so: it may have sent the next request already
        self._reset()
        self.client.finish(close)

    def note(self, status: int) -> None:
        """One entry for the access log and the counters, which are made in batches."""
        client, proxy = self.client, self.client.proxy
        now = monotonic_ns()
        total_us = (now - client.started) // 1000 if client.started else 0
        request_id = self.request_id or proxy.ids.mint(client.plan.head.request_id)
        proxy.journal.append((
            now + proxy.wall_offset, client.plan.message, status, self.spent_us,
            request_id, self.bytes_out, total_us,
        ))  # fmt: skip
        proxy.cells[BYTES_IN] += client.bytes_in
        proxy.admission.answered(client, self.bytes_out)

    def drop(self) -> None:
        """The client has left."""
        if self.ticket is not None:
            self.client.proxy.limiter.cancel(self.ticket)
            self.ticket = None
        self._hold_back(-self.held_back)
        self.pieces.clear()

    def break_off(self) -> None:
        """What was begun and cannot be ended gets a reset: an end of stream could look like its end."""
        self.note(self.status)
        self.reset_connection()

    def reset_connection(self) -> None:
        """A plain close would leave to the kernel what the client does not take, for minutes."""
        transport = self.client.transport
        with contextlib.suppress(OSError):  # a Unix socket has no such option; or no descriptor is left
            duplicate = os.dup(transport.get_extra_info("socket").fileno())
            with socket.socket(fileno=duplicate) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
