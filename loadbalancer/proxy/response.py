"""The response to the request that a client has in hand: what has been sent of it, and how it ends.

Touches the client's transport for writing, and has the exchange pause the instance's connection: a response
flows no faster than its client takes it and the bandwidth allows.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from time import monotonic_ns
from typing import TYPE_CHECKING

from twofold.loadbalancer.bandwidth.fair_queue import LEAST_QUANTUM
from twofold.loadbalancer.http import error_responses, response_head
from twofold.loadbalancer.http.forwarding import answer_fields
from twofold.loadbalancer.http.response_head import BadResponse, ResponseHead
from twofold.loadbalancer.proxy.downstream import BANDWIDTH, CHOKED, HELD, PRESSURE, Downstream, ResponseSink
from twofold.loadbalancer.proxy.paced_writer import PacedWriter
from twofold.loadbalancer.shared_memory import BYTES_IN
from twofold.wire import chunked
from twofold.wire.refusal import Refusal
from twofold.wire.request_head import STATUS_LINES

if TYPE_CHECKING:
    from twofold.loadbalancer.proxy.exchange import Exchange
    from twofold.loadbalancer.proxy.services import Services

MAX_INTERIM = 64  # interim responses to one request
CLOSE = b"connection: close\r\n"


class ClientResponse(ResponseSink):
    """One for each client, used again for each of its requests."""

    __slots__ = (
        "_chunking", "_client", "_close", "_ending", "_exchange", "_interims", "_request_id", "_services",
        "_spent_us", "_status", "stuck_since_s", "unsent", "writer",
    )  # fmt: skip

    def __init__(self, client: Downstream, exchange: Exchange, services: Services) -> None:
        super().__init__()
        self._client = client
        self._exchange = exchange
        self._services = services
        self.writer = PacedWriter(client, services.limiter, self.drained)
        self.unsent = -1  # bytes in the transport at the last look
        self.stuck_since_s = 0.0  # since when the client has taken none of them
        self._reset()

    def _reset(self) -> None:
        self.begun = False
        self.writer.urgent = False
        self.writer.bytes_out = 0
        self._ending = False  # all of it is with the writer
        self._chunking = False
        self._close = False
        self._status = 0
        self._request_id = b""
        self._interims = 0
        self._spent_us = 0  # by the instance

    # ------------------------------------------------------------------ responses in one piece

    def whole(self, data: bytes, status: int, request_id: bytes, spent_us: int, now_ns: int) -> None:
        """The hot path: all of the response, ready to be sent. `now_ns` is the time of its arrival."""
        client, services, size = self._client, self._services, len(data)
        if not services.limiter.pay(size):
            self.begun, self._status, self._request_id = True, status, request_id
            self._spent_us, self._ending = spent_us, True
            self.writer.urgent = size <= services.limiter.quantum
            self.writer.wait(data)
            return
        client.transport.write(data)
        if self.writer.bytes_out:  # 100 (Continue) went before it
            size += self.writer.bytes_out
            self.writer.bytes_out = 0
        services.entries.append((
            now_ns + services.state.wall_offset_ns, client.plan.message, status, spent_us, request_id, size,
            (now_ns - client.started_ns) // 1000,
        ))  # fmt: skip
        services.cells[BYTES_IN] += client.bytes_in
        if not services.admission.simple:
            services.admission.responded(client.plan, client.peer, size)
        client.finish(False)

    def refuse(self, refused: Refusal, close: bool) -> None:
        """The load balancer's own response."""
        self.writer.drop()  # interim responses that have not gone out
        client, services = self._client, self._services
        connection = CLOSE if close else client.plan.connection
        self._request_id = services.ids.mint(client.plan.head.request_id)
        data = error_responses.answer(refused, self._request_id, services.state.date, connection)
        if client.plan.to_head:
            data = data[: data.index(b"\r\n\r\n") + 4]
        self.begun = self._ending = True
        self._status, self._close = refused.status, close
        # Faulty requests pay as good ones do: a client that sends only those gets no more than its share.
        # Refusals for want of something neither wait nor pay: they are there to spare bandwidth.
        price = client.bytes_in + len(data)
        if not close and refused.faulty and not services.limiter.pay(price):
            client.state = HELD
            self.writer.hold(data, price)
        else:
            self.writer.free(data)

    # ------------------------------------------------------------------ a response that flows

    def interim(self, head: ResponseHead) -> None:
        """1xx: passed on to HTTP/1.1 clients (RFC 9110, 15.2), but for 100, which the proxy sends itself.

        Raises BadResponse for too many of them.
        """
        self._interims += 1
        if self._interims > MAX_INTERIM:
            raise BadResponse("it sends one interim answer after the other")
        if head.status != 100 and self._client.plan.head.version == (1, 1):
            fields = b"".join(
                b"%b: %b\r\n" % field for field in answer_fields(head.fields) if field[0] != b"content-length"
            )
            data = b"HTTP/1.1 %d %b\r\n%b\r\n" % (head.status, head.reason, fields)
            if len(data) <= LEAST_QUANTUM:  # or a part of it could have gone when the request is given up
                self._send(data)

    def begin(self, head: ResponseHead) -> None:
        client, services = self._client, self._services
        modern = client.plan.head.version == (1, 1)
        unframed = head.framing in (response_head.CHUNKED, response_head.TO_THE_END)
        self._chunking = unframed and modern
        self._close = (
            client.plan.close or services.state.draining or bool(client.left) or (unframed and not modern)
        )
        self.begun, self._status = True, head.status
        self._request_id = head.request_id or services.ids.mint(client.plan.head.request_id)
        data = self._head(head)
        self.writer.urgent = not unframed and len(data) + head.length <= services.limiter.quantum
        if client.paused & CHOKED:
            self._exchange.hold(PRESSURE)
        self._send(data)

    def _head(self, head: ResponseHead) -> bytes:
        """The head for the client, with the fields of this connection."""
        without = {b"opc-request-id"}
        if not self._chunking:
            without.add(b"trailer")
        if head.status == 204:  # RFC 9110, 8.6
            without.add(b"content-length")
        lines = [b"%b: %b\r\n" % field for field in answer_fields(head.fields) if field[0] not in without]
        lines.append(b"opc-request-id: %b\r\n" % self._request_id)
        if self._chunking:
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(CLOSE if self._close else self._client.plan.connection)
        if head.reason:
            status = b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)
        else:
            status = STATUS_LINES[head.status]
        return b"%b%b\r\n" % (status, b"".join(lines))

    def relay(self, piece: bytes) -> None:
        if piece:
            self._send(chunked.chunk(piece) if self._chunking else piece)

    def end(self, trailers: list[tuple[bytes, bytes]], spent_us: int) -> None:
        """The instance is through with it; what waits for bandwidth still goes out."""
        if self._chunking:
            self._send(chunked.last_chunk(trailers))
        self._ending, self._spent_us = True, spent_us
        if not self.writer.pieces:
            self._end()

    def _send(self, data: bytes) -> None:
        self._exchange.heard_s = self._services.state.now_s
        if not self.writer.write(data):
            self._exchange.hold(BANDWIDTH)

    def drained(self) -> None:
        """Everything that waited for bandwidth has gone."""
        if self._ending:
            self._end()
        else:
            self._exchange.go_on(BANDWIDTH)

    # ------------------------------------------------------------------ endings

    def _end(self) -> None:
        self.note(self._status)
        close = self._close  # only if the client was told so: it may have sent the next request already
        self._reset()
        self._client.finish(close)

    def note(self, status: int) -> None:
        """One entry for the access log and the counters, which are made in batches."""
        client, services = self._client, self._services
        now_ns = monotonic_ns()
        total_us = (now_ns - client.started_ns) // 1000 if client.started_ns else 0
        request_id = self._request_id or services.ids.mint(client.plan.head.request_id)
        services.entries.append((
            now_ns + services.state.wall_offset_ns, client.plan.message, status, self._spent_us, request_id,
            self.writer.bytes_out, total_us,
        ))  # fmt: skip
        services.cells[BYTES_IN] += client.bytes_in
        services.admission.responded(client.plan, client.peer, self.writer.bytes_out)

    def break_off(self) -> None:
        """Reset the connection: an end of stream could look like the end of the response."""
        self.note(self._status)
        self.reset_connection()

    def reset_connection(self) -> None:
        """A plain close would leave to the kernel what the client does not take, for minutes."""
        transport = self._client.transport
        with contextlib.suppress(OSError):  # a Unix socket has no such option; or no descriptor is left
            duplicate = os.dup(transport.get_extra_info("socket").fileno())
            with socket.socket(fileno=duplicate) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
