"""The connections to one instance: write a request, parse its response, relay it to the client.

Touches their transports.  A connection carries one exchange at a time.  It is reused only if the response
ended exactly at its framed length and the whole request was sent (RFC 9112, 9.3 and 11.2).

    FREE -> ASKED -> FREE                one read holds the whole response
            ASKED -> HEAD -> BODY -> FREE
    any  -> CLOSED
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.http import response_head
from twofold.loadbalancer.http.response_head import BadResponse, HeadTemplate, ResponseHead
from twofold.loadbalancer.proxy.downstream import INSTANCE, PRESSURE
from twofold.loadbalancer.proxy.exchange import ANSWERED, BROKEN, LOST, Carrier, Exchange
from twofold.wire import chunked, proxy_protocol
from twofold.wire.request_head import MAX_HEAD, find_head

if TYPE_CHECKING:
    from twofold.loadbalancer.proxy.downstream import Downstream
    from twofold.loadbalancer.proxy.services import Services

FREE: Final = 0
ASKED: Final = 1
HEAD: Final = 2
BODY: Final = 3
CLOSED: Final = 4

MOVES: Final = {
    FREE: (ASKED, CLOSED),
    ASKED: (HEAD, FREE, CLOSED),
    HEAD: (HEAD, BODY, CLOSED),
    BODY: (FREE, CLOSED),
    CLOSED: (CLOSED,),
}

HIGH_WATER = 131072  # bytes in the write buffer at which the source is paused
LOW_WATER = 32768
MAX_AGE_S = 3600.0


class UpstreamConnections:
    """All connections to one instance. `idle` is LIFO: recently used connections are reused first.

    `line`: the PROXY protocol version that the instance expects, or "". A connection with a PROXY line
    belongs to one client and is not reused.
    """

    __slots__ = ("_cells", "_clock", "_open", "_reuse", "idle", "line", "name")

    def __init__(self, services: Services, name: str) -> None:
        chosen = services.config.pool.proxy_protocol_out
        self.name = name  # of the instance, for warnings
        self.line = "" if chosen == "off" else chosen
        self.idle: list[UpstreamConnection] = []
        self._open: set[UpstreamConnection] = set()
        self._cells = services.cells
        self._clock = services.state
        self._reuse = not self.line

    def take(self) -> UpstreamConnection | None:
        """An idle connection that the instance has not closed, or None."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.transport.reading:
                return connection
        return None

    def give_back(self, connection: UpstreamConnection) -> None:
        """Make the connection available for the next request, or close it if it is not reusable."""
        if self._reuse:
            connection.since_s = self._clock.now_s
            self.idle.append(connection)
        else:
            connection.transport.close()

    def opened(self, connection: UpstreamConnection) -> None:
        self._open.add(connection)
        self._cells[shared_memory.UPSTREAM_OPENED] += 1
        self._cells[shared_memory.UPSTREAM_OPEN] += 1

    def closed(self, connection: UpstreamConnection) -> None:
        if connection in self._open:
            self._open.discard(connection)
            self._cells[shared_memory.UPSTREAM_OPEN] -= 1
        if connection in self.idle:
            self.idle.remove(connection)

    def prune(self, now_s: float, idle_limit_s: float) -> None:
        """Close connections that are idle for `idle_limit_s` seconds or older than MAX_AGE_S.

        The proxy closes first, so that the instance does not close one as a request is sent on it.
        """
        fresh = [
            one
            for one in self.idle
            if now_s - one.since_s < idle_limit_s and now_s - one.opened_s < MAX_AGE_S
        ]
        stale = [one for one in self.idle if one not in fresh] if len(fresh) != len(self.idle) else []
        self.idle = fresh
        for connection in stale:
            connection.transport.close()

    def close_idle(self) -> None:
        idle, self.idle = self.idle, []
        for connection in idle:
            connection.transport.close()

    def close(self) -> None:
        """The instance has left the pool: close idle connections now, the others after their response."""
        self._reuse = False
        self.close_idle()


class UpstreamConnection(Carrier):
    __slots__ = (
        "_chunks", "_connections", "_head", "_left", "_partial", "_services", "_template", "opened_s",
        "since_s", "state",
    )  # fmt: skip

    def __init__(self, services: Services, connections: UpstreamConnections) -> None:
        super().__init__()
        self._services = services
        self._connections = connections
        self._template: HeadTemplate | None = None
        self.opened_s = self.since_s = services.state.now_s
        # The current response
        self.state = FREE
        self._partial = b""
        self._head: ResponseHead | None = None
        self._left = 0
        self._chunks: chunked.ChunkReader | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        self._connections.opened(self)

    def expects(self) -> bool:
        return self.exchange is not None

    def ask(self, exchange: Exchange, now_ns: int) -> None:
        """Write the exchange's request: the head and the received part of the body."""
        self.exchange, self.state = exchange, ASKED
        exchange.ask(self, now_ns)
        client = exchange.downstream
        if self._connections.line:
            self.transport.write(proxy_protocol.render(self._connections.line, _addresses(client)))
        self.transport.write(client.hand_over())
        if not exchange.whole:
            exchange.set_apart()
        if client.paused:  # the client was paused until its first bytes could be written
            client.resume(INSTANCE)

    # ------------------------------------------------------------------ responses

    def data_received(self, data: bytes) -> None:
        """Hot path: one read holds a whole response whose head matches the template."""
        exchange, template = self.exchange, self._template
        if (
            self.state == ASKED
            and template is not None
            and exchange is not None
            and exchange.whole
            and exchange.downstream.plan.plain
            and not self._services.state.draining
        ):
            request_id = template.twin(data) if template.id_size else b""
            if len(data) == template.total and data.startswith(template.same):
                request_id = self._services.ids.mint(exchange.downstream.plan.head.request_id)
                data = template.opening + request_id + data[template.cut :]
            if not request_id:
                known = data.startswith(template.start)
                match = template.rest(data, template.size) if known else template.match(data)
                if match is None or match.end() + int(match["length"]) != len(data):
                    self._read(data)
                    return
                request_id = match["request_id"] if template.has_id else b""
                request_id = request_id or self._services.ids.mint(exchange.downstream.plan.head.request_id)
                data = template.edit(data, match, request_id)
            self._deliver(exchange, data, template.status, request_id)
        else:
            self._read(data)

    def _deliver(self, exchange: Exchange, data: bytes, status: int, request_id: bytes) -> None:
        """A whole response: free this connection and the exchange before the client continues."""
        now_ns = monotonic_ns()
        spent_us = (now_ns - exchange.asked_at_ns) // 1000
        self.exchange, self.state = None, FREE
        self._connections.give_back(self)
        exchange.finish(ANSWERED, now_ns, status)
        exchange.downstream.sink.whole(data, status, request_id, spent_us, now_ns)

    def _read(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:  # unexpected bytes would be parsed as the next response
            self.abort()
            return
        try:
            if self.state == BODY:
                self._body(exchange, data)
            else:
                self.state = HEAD
                exchange.heard()
                self._partial += data
                self._heads(exchange)
        except (BadResponse, chunked.BadChunk) as fault:
            self.fail(str(fault))

    def _heads(self, exchange: Exchange) -> None:
        client = exchange.downstream
        while True:
            end = find_head(self._partial)
            if end < 0:
                if len(self._partial) > MAX_HEAD:
                    raise BadResponse("the head is too large")
                if response_head.doomed(self._partial):
                    raise BadResponse("the head is not HTTP/1.1")
                return
            raw, rest = self._partial[:end], self._partial[end:]
            head = response_head.parse(raw, client.plan.to_head)
            self._partial = rest
            if head.status == 101:
                raise BadResponse("it switches protocols without a request to do so")
            if not head.interim:
                break
            client.sink.interim(head)
        self._partial = b""
        if not client.plan.to_head:
            self._template = self._services.templates.learn(raw, head)
        self._head, self.state, self._left = head, BODY, head.length
        self._chunks = chunked.ChunkReader() if head.framing == response_head.CHUNKED else None
        client.sink.begin(head)
        self._body(exchange, rest)
        if self.exchange is exchange and self.state == BODY and head.framing == response_head.LENGTH:
            exchange.begun()

    def _body(self, exchange: Exchange, data: bytes) -> None:
        assert self._head is not None
        sink = exchange.downstream.sink
        if self._head.framing == response_head.TO_THE_END:
            sink.relay(data)
        elif self._chunks is not None:
            for piece in self._chunks.feed(data):
                sink.relay(piece)
            if self._chunks.done:
                self._end(exchange, surplus=bool(self._chunks.rest))
        else:
            piece = data[: self._left]
            self._left -= len(piece)
            sink.relay(piece)
            if not self._left:
                self._end(exchange, surplus=len(data) > len(piece))

    def _end(self, exchange: Exchange, surplus: bool = False) -> None:
        """The response is complete. The connection is reused unless `surplus` bytes followed, the head
        forbids it, or part of the request is unsent.
        """
        head, trailers = self._head, self._chunks.trailers if self._chunks else []
        assert head is not None
        exchange.detach()
        now_ns = monotonic_ns()
        spent_us = exchange.spent_us(now_ns)
        reusable = head.keep_alive and exchange.whole and not surplus
        self.exchange, self._head, self._chunks = None, None, None
        self.state = FREE if reusable else CLOSED
        if reusable:
            self._connections.give_back(self)
        else:
            self.transport.close()
            if not head.keep_alive:  # a draining instance will close its idle connections as well
                self._connections.close_idle()
        exchange.finish(ANSWERED, now_ns, head.status)
        exchange.downstream.sink.end(trailers, spent_us)

    # ------------------------------------------------------------------ endings

    def eof_received(self) -> bool:
        exchange, head = self.exchange, self._head
        if exchange is not None and head is not None and self.state == BODY:  # noqa: SIM102
            if head.framing == response_head.TO_THE_END:
                self._end(exchange)
        return False

    def fail(self, why: str) -> None:
        """The response is invalid or incomplete: close the connection and end the exchange as BROKEN."""
        exchange, self.exchange = self.exchange, None
        self.abort()
        if exchange is not None:
            self._services.state.warn(f"{self._connections.name}: {why}")
            exchange.finish(BROKEN, monotonic_ns())

    def abort(self) -> None:
        self.state = CLOSED
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        begun = self.state in (HEAD, BODY)
        self.state = CLOSED
        self._connections.closed(self)
        if exchange is not None:
            exchange.downstream.resume(PRESSURE)
            if begun:
                self._services.state.warn(
                    f"{self._connections.name}: it closed the connection within a response"
                )
            exchange.finish(BROKEN if begun else LOST, monotonic_ns())

    def pause_writing(self) -> None:
        """The instance takes the body more slowly than the client sends it."""
        if self.exchange is not None:
            self.exchange.downstream.pause(PRESSURE)

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.downstream.resume(PRESSURE)


def _addresses(client: Downstream) -> proxy_protocol.ConnectionAddresses | None:
    """The addresses of the client's connection for a PROXY line; None if they are unknown."""
    peer, here = (client.transport.get_extra_info(name) for name in ("peername", "sockname"))
    if not (isinstance(peer, tuple) and isinstance(here, tuple) and client.peer):
        return None
    return proxy_protocol.ConnectionAddresses(client.peer, peer[1], here[0], here[1])
