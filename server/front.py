"""A front: one process that speaks HTTP on the shared listener and hands predict to the replicas.

Touches the listener, its connections, its block of counters and the access-log pipe.  What all
connections share lives here: the plans of heads seen before, ids, the tick, the drain.
"""

from __future__ import annotations

import asyncio
import mmap
import resource
import signal
import socket
import time
from dataclasses import dataclass

import uvloop

from server import answers, asgi, http1, log, metrics, plan, scribe
from server.app import create_app
from server.config import Config
from server.dispatch import Dispatch, Lanes
from server.embed import SlotBackend
from server.http1_protocol import CLOSED, GONE, Connection
from server.plan import Plan, Rules
from server.replica import lineage, slots

TICK = 0.05
MAX_PLANS = 1024
MAX_PLAN_HEAD = 2048  # bytes; longer heads are parsed each time
GRACE_TICKS = 4


@dataclass(frozen=True, slots=True)
class Place:
    """What a front inherits from the supervisor."""

    number: int
    listener: socket.socket
    memory: mmap.mmap
    layout: slots.Layout
    lanes: Lanes
    access_log: int  # fd of the scribe's pipe, or -1
    config: Config


class Front:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.http = place.config.http
        self.dispatch = Dispatch(
            place.memory, place.layout, place.number, place.lanes, place.config.replicas.predict_timeout
        )
        self.counters = metrics.Counters(place.memory, place.number)
        self.cells = self.counters.cells
        self.rules = Rules(place.layout.max_body, self.http.root_ocid)
        self.plans: dict[bytes, Plan] = {}
        self.no_plan = plan.make_plan(http1.parse_head(b"GET / HTTP/1.0\r\n\r\n"), self.rules)
        self.ids = answers.RequestIds()
        self.answers = answers.Answers()
        self.connections: set[Connection] = set()
        self.draining = False
        self.connection = b""  # the Connection field that drain puts on every answer
        self.now = 0.0  # the loop's clock as of the last tick: fine enough for timeouts
        self.wall_ns = 0
        self.journal: list[log.AccessRecord] = []
        self.access = log.AccessLog(place.config.log.deployment_id or "twofold")
        self.pipe = scribe.PipeWriter(place.access_log) if place.access_log >= 0 else None
        self._second = 0
        self._ticks = 0

    # ------------------------------------------------------------------ for connections

    def remember(self, raw: bytes) -> Plan:
        """The plan of a head that is not in `plans`; raises BadRequest."""
        made = plan.make_plan(http1.parse_head(raw), self.rules)
        if len(raw) <= MAX_PLAN_HEAD:
            if len(self.plans) >= MAX_PLANS:
                self.plans.clear()  # a client that varies its heads gains nothing from any policy
            self.plans[raw] = made
        return made

    def connected(self, connection: Connection) -> None:
        self.connections.add(connection)
        self.cells[metrics.ACCEPTED_CONNECTIONS] += 1

    def disconnected(self, connection: Connection) -> None:
        self.connections.discard(connection)

    def account(
        self, connection: Connection, status: int, sent: int, queue_us: int, predict_us: int, encode_us: int
    ) -> None:
        """Count an answer and note it for the access log."""
        cells = self.cells
        total_us = (time.monotonic_ns() - connection.started) // 1000 if connection.started else 0
        if status == 200:
            cells[0] += 1
            cells[metrics.QUEUE + queue_us.bit_length()] += 1
            cells[metrics.QUEUE + metrics.SUM] += queue_us
            cells[metrics.PREDICT + predict_us.bit_length()] += 1
            cells[metrics.PREDICT + metrics.SUM] += predict_us
            cells[metrics.ENCODE + encode_us.bit_length()] += 1
            cells[metrics.ENCODE + metrics.SUM] += encode_us
            cells[metrics.TOTAL + total_us.bit_length()] += 1
            cells[metrics.TOTAL + metrics.SUM] += total_us
        elif status == GONE:
            cells[metrics.CLIENT_GONE] += 1
        else:
            cells[metrics.STATUS_CELL.get(status, metrics.OTHER_STATUS)] += 1
        cells[metrics.BYTES_IN] += connection.plan.length
        cells[metrics.BYTES_OUT] += sent
        if self.pipe is not None:
            self.journal.append(
                (time.time_ns(), connection.plan.message, status, predict_us, connection.request_id, sent, total_us)
            )

    def run_application(self, connection: Connection, chosen: Plan, body: bytes) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._application(connection, chosen, body))

    async def _application(self, connection: Connection, chosen: Plan, body: bytes) -> None:
        """Every route but predict: the ASGI application has the request."""
        raise NotImplementedError

    # ------------------------------------------------------------------ the tick

    def tick(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        self.dispatch.tick()
        self._ticks += 1
        if self._ticks % 2 == 0:
            self._flush()
        wall = int(time.time())
        if wall != self._second:
            self._second = wall
            self.answers.refresh(wall)
            for connection in list(self.connections):
                connection.check(self.now)

    def _flush(self) -> None:
        cells = self.cells
        cells[metrics.OPEN_CONNECTIONS] = len(self.connections)
        cells[metrics.REQUESTS_INSIDE] = self.dispatch.depth
        cells[metrics.REPLAYED] += self.dispatch.replayed
        self.dispatch.replayed = 0
        if self.pipe is not None:
            batch, self.journal = self.journal, []
            lines = self.access.format(batch) if batch else b""
            cells[metrics.ACCESS_DROPPED] += self.pipe.write(lines)
        self.counters.flush()

    # ------------------------------------------------------------------ life

    async def serve(self) -> None:
        """Accept until SIGTERM, then finish what is in hand."""
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stopping.set)
        self.dispatch.start(loop)
        self.tick()
        server = await loop.create_server(lambda: Connection(self), sock=self.place.listener)
        ticking = loop.create_task(self._tick_forever())
        await stopping.wait()
        server.close()
        self.draining, self.connection = True, b"connection: close\r\n"
        for _ in range(GRACE_TICKS):  # what the kernel had already accepted for us is still served
            await asyncio.sleep(TICK)
        while self.connections:
            for connection in list(self.connections):
                connection.check(self.now)
            await asyncio.sleep(TICK)
        ticking.cancel()
        self._flush()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self.tick()


def run(place: Place) -> int:
    """Be a front until told to stop; the exit code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(Front(place).serve())
    return 0
