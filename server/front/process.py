"""A front: one process that speaks HTTP on the shared listener and hands predict to the replicas.

Touches the listener, its connections, its block of counters and the access-log pipe.  What all
connections share is here: the plans of heads seen before, ids, the tick, the drain.
"""

from __future__ import annotations

import asyncio
import mmap
import time
from dataclasses import dataclass, replace

import uvloop

from twofold.logs.console import say
from twofold.logs.journal import AccessJournal
from twofold.process import worker
from twofold.process.heartbeat import Heartbeat
from twofold.server.config import Config
from twofold.server.front import asgi, request_counts, responses, route, timeouts
from twofold.server.front.api import create_app
from twofold.server.front.dispatch import Dispatch, QueuePipes
from twofold.server.front.embedding import SlotBackend
from twofold.server.front.http1 import Connection
from twofold.server.front.listeners import Listeners
from twofold.server.front.route import RoutePlan, RouteRules
from twofold.server.replica import slots
from twofold.server.telemetry import metrics
from twofold.wire import request_head
from twofold.wire.head_memo import HeadMemo
from twofold.wire.request_ids import RequestIds

TICK_S = 0.05
GRACE_TICKS = 4


@dataclass(frozen=True, slots=True)
class FrontContext:
    """What a front inherits from the supervisor."""

    number: int
    listeners: Listeners
    memory: mmap.mmap
    layout: slots.Layout
    queue_pipes: QueuePipes
    access_log: int  # fd of the log writer's pipe, or -1
    config: Config


class Front:
    def __init__(self, context: FrontContext) -> None:
        self.context = context
        self.http = context.config.http
        self.dispatch = Dispatch(
            context.memory,
            context.layout,
            context.number,
            context.queue_pipes,
            context.config.replicas.predict_timeout,
        )
        counters = metrics.open_counters(context.memory, context.number)
        self.access_journal = AccessJournal(
            counters, metrics.ACCESS_DROPPED, request_counts.count, context.access_log,
            context.config.log.deployment_id or "twofold",
        )  # fmt: skip
        self.cells = counters.cells
        self._heart = Heartbeat(metrics.heartbeats(context.memory), context.number)
        self.journal = self.access_journal.entries
        self.rules = RouteRules(context.layout.max_body, self.http.root_ocid)
        self.memo: HeadMemo[RoutePlan] = HeadMemo()
        self.plans = self.memo.plans
        nothing = route.make_plan(request_head.parse_head(b"GET / HTTP/1.0\r\n\r\n"), self.rules)
        self.no_plan = replace(nothing, message=b"- - -")  # of a head that could not be read
        self.ids = RequestIds()
        self.answers = responses.Responses()
        self.connections: set[Connection] = set()
        self.draining = False
        self.connection = b""  # the Connection field that drain puts on every answer
        self.now_s = 0.0  # the loop's clock as of the last tick: fine enough for timeouts
        self.wall_offset_ns = time.time_ns() - time.monotonic_ns()
        self.app = create_app(SlotBackend(self.dispatch, self.ids), self.rules)
        self._wall_s = 0  # Unix time as of the last tick

    # ------------------------------------------------------------------ for connections

    def remember(self, raw: bytes) -> RoutePlan:
        """The plan of a head that is not in `plans`; raises BadRequest."""
        made = route.make_plan(request_head.parse_head(raw), self.rules)
        self.memo.put(raw, made)
        return made

    def connected(self, connection: Connection) -> None:
        self.connections.add(connection)
        self.cells[metrics.ACCEPTED_CONNECTIONS] += 1

    def disconnected(self, connection: Connection) -> None:
        self.connections.discard(connection)

    def run_application(self, connection: Connection, chosen: RoutePlan, body: bytes) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._application(connection, chosen, body))

    async def _application(self, connection: Connection, chosen: RoutePlan, body: bytes) -> None:
        """Every route but predict: the ASGI application has the request."""
        transport = connection.transport
        call = asgi.AsgiRequest(
            head=chosen.head,
            body=body,
            request_id=connection.exchange.request_id,
            client=_address(transport, "peername"),
            server=_address(transport, "sockname"),
            close=chosen.close or self.draining,
        )
        outcome = await asgi.serve(self.app, call, transport.write)
        connection.finish_task(outcome)

    # ------------------------------------------------------------------ the tick

    def tick(self) -> None:
        """Every TICK_S: deadlines, counts, and once a second the date and the connections that are late."""
        self._heart.beat()
        loop = asyncio.get_running_loop()
        self.now_s = loop.time()
        self.dispatch.tick()
        self._show()
        wall_s = int(time.time())
        if wall_s != self._wall_s:
            self._wall_s = wall_s
            self.answers.refresh(wall_s)
            self.wall_offset_ns = time.time_ns() - time.monotonic_ns()
            for connection in list(self.connections):
                timeouts.check(connection, self.now_s)

    def _show(self) -> None:
        """Write down what was counted since the last tick."""
        cells = self.cells
        cells[metrics.OPEN_CONNECTIONS] = len(self.connections)
        cells[metrics.REQUESTS_INSIDE] = self.dispatch.table.in_use
        cells[metrics.REPLAYED] += self.dispatch.replayed
        self.dispatch.replayed = 0
        self.access_journal.flush()

    # ------------------------------------------------------------------ from start to end

    async def serve(self) -> None:
        """Accept until SIGTERM, then finish the requests that have begun."""
        loop = asyncio.get_running_loop()
        stopping = worker.stop_event(loop)
        self.dispatch.start(loop)
        self.tick()
        worker.settle_garbage_collector()
        listeners = self.context.listeners
        servers = [await loop.create_server(lambda: Connection(self), sock=listeners.port)]
        if listeners.local is not None:
            servers.append(await loop.create_unix_server(lambda: Connection(self), sock=listeners.local))
        ticking = loop.create_task(worker.tick_forever(TICK_S, self.tick, _say_bug))
        await stopping.wait()
        if self.context.memory[slots.DRAINING]:  # otherwise it is only this front that ends
            listeners.stop_connecting()
        self.draining, self.connection = True, responses.CLOSE
        await asyncio.sleep(TICK_S)  # a client whose SYN has arrived still connects
        for server in servers:
            server.close()
        for _ in range(GRACE_TICKS):  # and may still send a request
            await asyncio.sleep(TICK_S)
        while self.connections:
            for connection in list(self.connections):
                timeouts.check(connection, self.now_s)
            await asyncio.sleep(TICK_S)
        ticking.cancel()
        self.access_journal.close()


def _say_bug(error: str) -> None:
    say("error", f"a bug in the front's tick: {error}")


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int] | None:
    """Host and port, as ASGI has it; an IPv6 socket knows two things more. None when it is gone."""
    address: tuple[str, int] | None = transport.get_extra_info(name)
    return address[:2] if address else None


def run(context: FrontContext) -> int:
    """Be a front until told to stop; the exit code."""
    worker.raise_descriptor_limit()
    uvloop.run(Front(context).serve())
    return 0
