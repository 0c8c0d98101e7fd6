"""The response to a client's current request: relaying it, ending it, and recording it.

Touches the client's transport for writing.  Pauses the exchange, so that a response is read no faster than
the client reads it and the bandwidth allows.
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
    """One for each client, reused for each of its requests."""

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
        self.unsent = -1  # bytes in the transport's write buffer at the last timeout check
        self.stuck_since_s = 0.0  # since when `unsent` has not changed, on the loop's clock
        self._reset()

    def _reset(self) -> None:
        self.begun = False
        self.writer.urgent = False
        self.writer.bytes_out = 0
        self._ending = False  # all of it has been passed to the writer
        self._chunking = False
        self._close = False
        self._status = 0
        self._request_id = b""
        self._interims = 0
        self._spent_us = 0  # the instance's processing time

    # ------------------------------------------------------------------ responses in one piece

    def whole(self, data: bytes, status: int, request_id: bytes, spent_us: int, now_ns: int) -> None:
        """Hot path: a complete response. `now_ns` is the time of its arrival."""
        client, services, size = self._client, self._services, len(data)
        if not services.limiter.pay(size):
            self.begun, self._status, self._request_id = True, status, request_id
            self._spent_us, self._ending = spent_us, True
            self.writer.urgent = size <= services.limiter.quantum
            self.writer.wait(data)
            return
        client.transport.write(data)
        if self.writer.bytes_out:  # 100 (Continue) was sent before it
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
        """Send the load balancer's own error response, and close the connection if `close`."""
        self.writer.drop()  # interim responses that are not sent yet
        client, services = self._client, self._services
        connection = CLOSE if close else client.plan.connection
        self._request_id = services.ids.mint(client.plan.head.request_id)
        data = error_responses.answer(refused, self._request_id, services.state.date, connection)
        if client.plan.to_head:
            data = data[: data.index(b"\r\n\r\n") + 4]
        self.begun = self._ending = True
        self._status, self._close = refused.status, close
        # Invalid requests pay for bandwidth: otherwise a client that sends only those would exceed its share.
        # Refusals for overload neither wait nor pay: their purpose is to save bandwidth.
        price = client.bytes_in + len(data)
        if not close and refused.faulty and not services.limiter.pay(price):
            client.state = HELD
            self.writer.hold(data, price)
        else:
            self.writer.free(data)

    # ------------------------------------------------------------------ streamed responses

    def interim(self, head: ResponseHead) -> None:
        """Relay a 1xx response to an HTTP/1.1 client (RFC 9110, 15.2), except 100, which the proxy sends.

        Raises BadResponse for more than MAX_INTERIM of them.
        """
        self._interims += 1
        if self._interims > MAX_INTERIM:
            raise BadResponse(f"it sends more than {MAX_INTERIM} interim responses")
        if head.status != 100 and self._client.plan.head.version == (1, 1):
            fields = b"".join(
                b"%b: %b\r\n" % field for field in answer_fields(head.fields) if field[0] != b"content-length"
            )
            data = b"HTTP/1.1 %d %b\r\n%b\r\n" % (head.status, head.reason, fields)
            if len(data) <= LEAST_QUANTUM:  # one piece: it is never sent in part when the request is refused
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
        """The response head for the client, with the hop-by-hop fields of its connection."""
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
        """The instance has sent the whole response; pieces that wait for bandwidth are sent later."""
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
        """All pieces that waited for bandwidth have been sent."""
        if self._ending:
            self._end()
        else:
            self._exchange.go_on(BANDWIDTH)

    # ------------------------------------------------------------------ endings

    def _end(self) -> None:
        self.note(self._status)
        close = self._close  # announced in the head; otherwise the next request may be in flight already
        self._reset()
        self._client.finish(close)

    def note(self, status: int) -> None:
        """Append one entry to the journal, from which counters and access-log lines are made in batches."""
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
        """Reset the connection: a plain end of stream could be taken for the end of the response."""
        self.note(self._status)
        self.reset_connection()

    def reset_connection(self) -> None:
        """Close with SO_LINGER 0: otherwise the kernel would keep unread bytes for minutes."""
        transport = self._client.transport
        with contextlib.suppress(OSError):  # a Unix socket lacks the option; or descriptors are exhausted
            duplicate = os.dup(transport.get_extra_info("socket").fileno())
            with socket.socket(fileno=duplicate) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
