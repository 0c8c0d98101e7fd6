"""One connection to an instance: a request out, its answer in and on to the client.

Touches its transport, and the client whose request it carries; the proxy owns what connections
share.  It carries one request at a time and goes back to its instance's idle ones only when the
answer ended exactly where its head said, with the request sent whole (RFC 9112, 9.3 and 11.2).

    FREE -> ASKED -> FREE                the usual: one read holds the whole answer
            ASKED -> HEAD -> BODY -> FREE
    any  -> CLOSED
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from twofold.loadbalancer.balancing.instance import WEIGHT
from twofold.loadbalancer.http import response_head
from twofold.loadbalancer.http.response_head import BadResponse, HeadTemplate, ResponseHead
from twofold.loadbalancer.shared_memory import BYTES_IN
from twofold.reactor.transport import ConnectionProtocol
from twofold.wire import chunked, proxy_protocol
from twofold.wire.request_head import MAX_HEAD, find_head

if TYPE_CHECKING:
    from twofold.loadbalancer.proxy.client import Client
    from twofold.loadbalancer.proxy.process import Proxy
    from twofold.loadbalancer.proxy.upstream_pool import UpstreamPool
    from twofold.reactor.transport import Transport

FREE: Final = 0
ASKED: Final = 1
HEAD: Final = 2
BODY: Final = 3
CLOSED: Final = 4
IDLE, INSTANCE, PRESSURE = 0, 2, 4  # of a client: see client.py

HIGH_WATER = 131072  # bytes that wait for the other side to take them
LOW_WATER = 32768


class UpstreamConnection(ConnectionProtocol):
    __slots__ = (
        "apart",
        "asked_at",
        "chunks",
        "client",
        "head",
        "heard_at",
        "left",
        "link",
        "opened",
        "partial",
        "proxy",
        "said_close",
        "since",
        "state",
        "template",
        "transport",
        "whole",
    )

    def __init__(self, proxy: Proxy, link: UpstreamPool) -> None:
        self.proxy = proxy
        self.link = link
        self.transport: Transport = None  # type: ignore[assignment]
        self.client: Client | None = None
        self.template: HeadTemplate | None = None
        self.opened = self.since = proxy.now
        self.said_close = False
        # The answer in hand
        self.state = FREE
        self.asked_at = 0
        self.heard_at = 0  # when the answer began whose end is for the client to take; 0 if none does
        self.apart = False  # see Instance.set_apart
        self.whole = True  # the request has been written to its end
        self.partial = b""
        self.head: ResponseHead | None = None
        self.left = 0
        self.chunks: chunked.ChunkReader | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)

    def expects(self) -> bool:
        return self.client is not None

    def ask(self, client: Client, now: int) -> None:
        """Carry the client's request: its head, and of its body what is there."""
        self.client, self.state, self.asked_at = client, ASKED, now
        self.whole = True
        if self.link.line:
            self.transport.write(proxy_protocol.render(self.link.line, _endpoints(client)))
        self.transport.write(client.hand_over(self))
        if not self.whole:
            self.apart = self.link.instance.set_apart()
        if client.paused:  # after its first bytes, more may follow
            client.resume(INSTANCE)

    def take(self, client: Client, now: int) -> None:
        """As `ask`, for a request that is here whole."""
        self.client, self.state, self.asked_at = client, ASKED, now
        self.whole = True
        self.transport.write(client.message)

    def given(self, whole: bool) -> None:
        """Another piece of a body that takes its time is on its way; with the last one, work begins."""
        self.whole = whole
        if not self.heard_at:
            self.asked_at = monotonic_ns()
        if whole and self.state == ASKED:
            self.rejoin()

    def excuse(self, spell: int) -> None:
        """A spell (ns) that its client, or bandwidth, took: it could neither work nor answer."""
        if not self.heard_at:
            self.asked_at += spell

    def rejoin(self) -> None:
        """Before the end of the request is counted, or when there is work to do."""
        if self.apart:
            self.apart = False
            self.link.instance.rejoin()

    # ------------------------------------------------------------------ answers

    def data_received(self, data: bytes) -> None:
        """The hot path: a whole answer in one read, of a kind seen before."""
        client, template = self.client, self.template
        if (
            self.state == ASKED
            and template is not None
            and self.whole
            and client is not None
            and client.plan.plain
            and not self.proxy.draining
        ):
            request_id = template.twin(data) if template.id_size else b""
            if len(data) == template.total and data.startswith(template.same):
                request_id = self.proxy.ids.mint(client.plan.head.request_id)
                data = template.opening + request_id + data[template.cut :]
            if not request_id:
                known = data.startswith(template.start)
                match = template.rest(data, template.size) if known else template.match(data)
                if match is None or match.end() + int(match["length"]) != len(data):
                    self._read(data)
                    return
                request_id = match["request_id"] if template.has_id else b""
                request_id = request_id or self.proxy.ids.mint(client.plan.head.request_id)
                data = template.edit(data, match, request_id)
            self.client, self.state = None, FREE
            self._pass_on(client, data, template.status, request_id)
        else:
            self._read(data)

    def _pass_on(self, client: Client, data: bytes, status: int, request_id: bytes) -> None:
        """A whole answer goes out in one write. What others have for this is spelt out: calls cost."""
        proxy, link, now = self.proxy, self.link, monotonic_ns()
        spent_us = (now - self.asked_at) // 1000
        limiter, size = proxy.limiter, len(data)
        if size > limiter.free and not limiter.fill(size):
            client.response.wait(data, status, request_id, spent_us)
        else:
            limiter.free -= size  # Throttle.pay
            client.transport.write(data)
            proxy.journal.append((
                now + proxy.wall_offset, client.plan.message, status, spent_us,
                request_id, size, (now - client.started) // 1000,
            ))  # fmt: skip
            proxy.cells[BYTES_IN] += client.bytes_in
            if not proxy.simple:
                proxy.admission.answered(client, size)
            if client.partial or client.paused:
                client.finish(False)
            else:
                client.state, client.since, client.message = IDLE, proxy.now, b""
                client.link = client.upstream = None
        if status < 500 and link.keeps:
            instance = link.instance  # Pool.finished
            instance.load -= instance.step
            instance.latency_sum_us += spent_us
            instance.latency_us += (spent_us - instance.latency_us) * WEIGHT
            if instance.suspected and not instance.record.out:
                proxy.pool.acquit(instance, now)
            self.since = proxy.now
            link.idle.append(self)
            if proxy.router.queued:
                proxy.router.dispatch(now)
        else:
            link.done(self, status, now)

    def _read(self, data: bytes) -> None:
        client = self.client
        if client is None:  # bytes that nobody asked for would be taken for the next answer
            self.abort()
            return
        try:
            if self.state == BODY:
                self._body(client, data)
            else:
                self.state = HEAD
                self.partial += data
                self._heads(client)
        except (BadResponse, chunked.BadChunk) as fault:
            self.fail(str(fault))

    def _heads(self, client: Client) -> None:
        while True:
            end = find_head(self.partial)
            if end < 0:
                if len(self.partial) > MAX_HEAD:
                    raise BadResponse("the head is too large")
                if response_head.doomed(self.partial):
                    raise BadResponse("the head is not HTTP/1.1")
                return
            raw, rest = self.partial[:end], self.partial[end:]
            head = response_head.parse(raw, client.plan.to_head)
            self.partial = rest
            if head.status == 101:
                raise BadResponse("it switches protocols, which nobody asked for")
            if not head.interim:
                break
            client.response.interim(head)
        self.partial = b""
        if not client.plan.to_head:
            self.template = self.proxy.templates.learn(raw, head)
        self.head, self.state, self.left = head, BODY, head.length
        self.chunks = chunked.ChunkReader() if head.framing == response_head.CHUNKED else None
        client.response.begin(head)
        self._body(client, rest)
        if self.state == BODY and head.framing == response_head.LENGTH and not self.apart:
            # The work is done. A client that takes its time keeps nobody from the next request.
            self.heard_at = monotonic_ns()
            self.apart = self.link.instance.set_apart()
            if self.proxy.router.queued:
                self.proxy.router.dispatch(self.heard_at)

    def _body(self, client: Client, data: bytes) -> None:
        assert self.head is not None
        if self.head.framing == response_head.TO_THE_END:
            client.response.relay(data)
        elif self.chunks is not None:
            for piece in self.chunks.feed(data):
                client.response.relay(piece)
            if self.chunks.done:
                self._end(client, surplus=bool(self.chunks.rest))
        else:
            piece = data[: self.left]
            self.left -= len(piece)
            client.response.relay(piece)
            if not self.left:
                self._end(client, surplus=len(data) > len(piece))

    def _end(self, client: Client, surplus: bool = False) -> None:
        """The answer is complete; the connection is kept only if nothing speaks against it."""
        head, trailers = self.head, self.chunks.trailers if self.chunks else []
        assert head is not None
        reusable = head.keep_alive and self.whole and not surplus
        self.said_close = not head.keep_alive
        self.client, self.head, self.chunks = None, None, None
        self.state = FREE if reusable else CLOSED
        client.response.end(trailers)
        self.link.done(self, head.status, monotonic_ns())

    # ------------------------------------------------------------------ endings

    def eof_received(self) -> bool:
        client = self.client
        if (
            client is not None
            and self.state == BODY
            and self.head is not None
            and self.head.framing == response_head.TO_THE_END
        ):
            self._end(client)
        return False

    def fail(self, why: str) -> None:
        """What came is no answer: tell the client so if nothing of one has been sent, else cut it off."""
        client, self.client = self.client, None
        self.abort()
        if client is not None:
            self.link.broken(client, why)

    def abort(self) -> None:
        """Never to be used again."""
        self.state = CLOSED
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        client, self.client = self.client, None
        begun = self.state in (HEAD, BODY)
        self.state = CLOSED
        self.link.closed(self)
        if client is not None:
            client.resume(PRESSURE)
            if begun:
                self.link.broken(client, "it closed the connection within an answer")
            else:
                self.link.lost(client)

    def pause_writing(self) -> None:
        """The instance takes the body more slowly than the client sends it."""
        if self.client is not None:
            self.client.pause(PRESSURE)

    def resume_writing(self) -> None:
        if self.client is not None:
            self.client.resume(PRESSURE)


def _endpoints(client: Client) -> proxy_protocol.ConnectionAddresses | None:
    """What an instance that wants a PROXY line is told of the client."""
    peer, here = (client.transport.get_extra_info(name) for name in ("peername", "sockname"))
    if not (isinstance(peer, tuple) and isinstance(here, tuple) and client.peer):
        return None
    return proxy_protocol.ConnectionAddresses(client.peer, peer[1], here[0], here[1])
