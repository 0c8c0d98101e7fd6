"""A front: one process that speaks HTTP on the shared listener and hands predict to the replicas.

Touches the listener, its connections, its block of counters and the access-log pipe.  What all
connections share lives here: the plans of heads seen before, ids, the tick, the drain.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import resource
import signal
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import compress

import uvloop

from twofold.logs import records as log
from twofold.logs import writer
from twofold.logs.console import say
from twofold.server.config import Config
from twofold.server.front import asgi, responses, route
from twofold.server.front.api import create_app
from twofold.server.front.dispatch import Dispatch, QueuePipes
from twofold.server.front.embedding import SlotBackend
from twofold.server.front.http1 import GONE, Connection
from twofold.server.front.listeners import Listeners
from twofold.server.front.route import RoutePlan, RouteRules
from twofold.server.replica import slots
from twofold.server.telemetry import metrics
from twofold.wire import request_head
from twofold.wire.head_memo import HeadMemo
from twofold.wire.request_ids import RequestIds

TICK = 0.05
GRACE_TICKS = 4
PIECE = 200  # journal entries made into log lines at a time: about half a millisecond
GC_THRESHOLD = 20000  # the journal alone holds thousands of tuples for 100 ms

# the access record, microseconds in the queue and in encoding, bytes of the body
Entry = tuple[log.AccessRecord, int, int, int]


@dataclass(frozen=True, slots=True)
class FrontContext:
    """What a front inherits from the supervisor."""

    number: int
    listeners: Listeners
    memory: mmap.mmap
    layout: slots.Layout
    lanes: QueuePipes
    access_log: int  # fd of the log writer's pipe, or -1
    config: Config


class Front:
    def __init__(self, place: FrontContext) -> None:
        self.place = place
        self.http = place.config.http
        self.dispatch = Dispatch(
            place.memory, place.layout, place.number, place.lanes, place.config.replicas.predict_timeout
        )
        self.counters = metrics.Counters(place.memory, place.number)
        self.cells = self.counters.cells
        self.rules = RouteRules(place.layout.max_body, self.http.root_ocid)
        self.memo: HeadMemo[RoutePlan] = HeadMemo()
        self.plans = self.memo.plans
        nothing = route.make_plan(request_head.parse_head(b"GET / HTTP/1.0\r\n\r\n"), self.rules)
        self.no_plan = replace(nothing, message=b"- - -")  # of a head that could not be read
        self.ids = RequestIds()
        self.answers = responses.Responses()
        self.connections: set[Connection] = set()
        self.draining = False
        self.connection = b""  # the Connection field that drain puts on every answer
        self.now = 0.0  # the loop's clock as of the last tick: fine enough for timeouts
        self.wall_offset = time.time_ns() - time.monotonic_ns()
        self.journal: list[Entry] = []
        self.access = log.AccessLog(place.config.log.deployment_id or "twofold")
        self.pipe = writer.PipeWriter(place.access_log) if place.access_log >= 0 else None
        self.app = create_app(SlotBackend(self.dispatch, self.ids), self.rules)
        self._second = 0

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
            request_id=connection.request_id,
            client=_address(transport, "peername"),
            server=_address(transport, "sockname"),
            close=chosen.close or self.draining,
        )
        outcome = await asgi.serve(self.app, call, transport.write)
        connection.finish_task(outcome.status, outcome.sent, outcome.close)

    # ------------------------------------------------------------------ the tick

    def tick(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        self.dispatch.tick()
        self._flush()
        wall = int(time.time())
        if wall != self._second:
            self._second = wall
            self.answers.refresh(wall)
            self.wall_offset = time.time_ns() - time.monotonic_ns()
            for connection in list(self.connections):
                connection.check(self.now)

    def _flush(self) -> None:
        """Turn the journal into counters and log lines, a piece at a time: requests go in between."""
        piece, self.journal[:PIECE] = self.journal[:PIECE], ()
        self._write_down(piece)
        if self.journal:
            asyncio.get_running_loop().call_soon(self._flush)
            return
        cells = self.cells
        cells[metrics.OPEN_CONNECTIONS] = len(self.connections)
        cells[metrics.REQUESTS_INSIDE] = self.dispatch.depth
        cells[metrics.REPLAYED] += self.dispatch.replayed
        self.dispatch.replayed = 0
        self.counters.flush()

    def _write_down(self, piece: list[Entry]) -> None:
        _count(self.cells, piece)
        if self.pipe is None or not piece:
            return
        lines = self.access.format([entry[0] for entry in piece])
        self.cells[metrics.ACCESS_DROPPED] += self.pipe.write(lines)
        if self.pipe.pending:
            asyncio.get_running_loop().add_writer(self.pipe.fileno(), self._flush_pipe)

    def _flush_pipe(self) -> None:
        """The log writer has made room for lines that did not fit at once."""
        assert self.pipe is not None
        self.pipe.flush()
        if not self.pipe.pending:
            asyncio.get_running_loop().remove_writer(self.pipe.fileno())

    # ------------------------------------------------------------------ life

    async def serve(self) -> None:
        """Accept until SIGTERM, then finish what is in hand."""
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stopping.set)
        self.dispatch.start(loop)
        self.tick()
        # What has been imported never becomes garbage; scanning it costs 10 ms at a time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 10, 100)
        listeners = self.place.listeners
        servers = [await loop.create_server(lambda: Connection(self), sock=listeners.port)]
        if listeners.local is not None:
            servers.append(await loop.create_unix_server(lambda: Connection(self), sock=listeners.local))
        ticking = loop.create_task(self._tick_forever())
        await stopping.wait()
        if self.place.memory[slots.DRAINING]:  # otherwise it is only this front that ends
            listeners.deafen()
        self.draining, self.connection = True, b"connection: close\r\n"
        await asyncio.sleep(TICK)  # who was about to connect still does
        for server in servers:
            server.close()
        for _ in range(GRACE_TICKS):  # and may still ask
            await asyncio.sleep(TICK)
        while self.connections:
            for connection in list(self.connections):
                connection.check(self.now)
            await asyncio.sleep(TICK)
        ticking.cancel()
        self._write_down(self.journal)
        self.counters.flush()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                self.tick()
            except Exception as error:  # without a tick there would be no deadlines, logs, counts, timeouts
                say("error", f"a bug in the front's tick: {type(error).__name__}: {error}")


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int] | None:
    """Host and port, as ASGI has it; an IPv6 socket knows two things more. None when it is gone."""
    address: tuple[str, int] | None = transport.get_extra_info(name)
    return address[:2] if address else None


def _count(cells: list[int], batch: list[Entry]) -> None:
    """Add a batch to the counters, column by column: that costs half of what a loop over rows does."""
    if not batch:
        return
    records, queues, encodes, received = zip(*batch, strict=True)
    _, _, statuses, predicts, _, sent, totals = zip(*records, strict=True)
    cells[metrics.BYTES_IN] += sum(received)
    cells[metrics.BYTES_OUT] += sum(sent)
    for status, times in Counter(statuses).items():
        gone = metrics.CLIENT_GONE if status == GONE else metrics.OTHER_STATUS
        cells[metrics.STATUS_CELL.get(status, gone)] += times
    if statuses.count(200) != len(statuses):  # durations are those of answers alone
        good = [status == 200 for status in statuses]
        queues, predicts, encodes, totals = (
            tuple(compress(column, good)) for column in (queues, predicts, encodes, totals)
        )
    for start, column in (
        (metrics.QUEUE, queues),
        (metrics.PREDICT, predicts),
        (metrics.ENCODE, encodes),
        (metrics.TOTAL, totals),
    ):
        for bucket, times in Counter(map(int.bit_length, column)).items():
            cells[start + bucket] += times
        cells[start + metrics.SUM] += sum(column)


def run(place: FrontContext) -> int:
    """Be a front until told to stop; the exit code."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(Front(place).serve())
    return 0
