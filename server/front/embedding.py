"""predict for callers that are not connections of a front: the ASGI application and its embedders.

`SlotBackend` hands requests to a dispatch and awaits the answer; it is what the application of a
front uses.  `open_backend` is for an application under another server (uvicorn, say): it
starts an instance without fronts and becomes its one front, over fds that the instance sends.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from json import loads

from twofold.errors import TwofoldError
from twofold.logs.console import say
from twofold.process import worker
from twofold.server.config import CATALOGUE, Config
from twofold.server.front import responses
from twofold.server.front.dispatch import Dispatch, QueuePipes
from twofold.server.front.outcomes import BUSY, DOWN, failure
from twofold.server.replica import frame, slots
from twofold.server.telemetry import instance_status, metrics
from twofold.server.telemetry.instance_status import InstanceStatus
from twofold.wire.refusal import Refusal
from twofold.wire.request_ids import RequestIds

TICK_S = 0.05
START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class PredictResponse:
    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


class _EmbeddedCall:
    """A caller that is a coroutine."""

    __slots__ = ("dispatch", "done", "size")

    def __init__(self, dispatch: Dispatch, size: int) -> None:
        self.dispatch = dispatch
        self.size = size
        self.done: asyncio.Future[tuple[int, bytes, bytes]] = asyncio.get_running_loop().create_future()

    def answered(
        self, slot: int, size: int, outcome: int, queue_us: int, predict_us: int, encode_us: int
    ) -> None:
        payload = b""
        if outcome < frame.RETRY:
            payload = bytes(self.dispatch.table.answer(slot, size))
            self.dispatch.table.release(slot, max(size, self.size))
        if not self.done.done():
            self.done.set_result((outcome, payload, responses.timing(queue_us, predict_us, encode_us)))


class SlotBackend:
    """What server.app asks for: the status of the instance, the counters, and predict."""

    def __init__(self, dispatch: Dispatch, ids: RequestIds) -> None:
        self.dispatch = dispatch
        self.ids = ids

    def instance_status(self) -> InstanceStatus:
        return instance_status.read(self.dispatch.memory)

    def metrics_snapshot(self) -> metrics.Snapshot:
        replicas = len(self.instance_status()["replicas"])
        return metrics.snapshot(self.dispatch.memory, self.dispatch.layout, self.dispatch.queued(), replicas)

    async def predict(self, body: bytes, kind: int, request_id: bytes) -> PredictResponse:
        """One predict. `request_id` is the caller's group, or empty."""
        dispatch, table, minted = self.dispatch, self.dispatch.table, self.ids.mint(request_id)
        slot = table.take()
        if slot is None:
            retry = ((b"retry-after", b"%d" % dispatch.retry_after()),)
            return _refused(DOWN if table.unavailable else BUSY, minted, responses.NO_TIMING, retry)
        table.body(slot, len(body))[:] = body
        waiting = _EmbeddedCall(dispatch, len(body))
        dispatch.submit(waiting, slot, len(body), kind, minted)
        try:
            outcome, payload, server_timing = await waiting.done
        except asyncio.CancelledError:
            dispatch.cancel(waiting, slot)
            raise
        if outcome == frame.ANSWERED:
            return PredictResponse(200, payload, _fields(minted, server_timing))
        return _refused(failure(outcome, payload), minted, server_timing)


def _fields(request_id: bytes, server_timing: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"content-type", b"application/json"),
        (b"x-content-type-options", b"nosniff"),
        (b"opc-request-id", request_id),
        (b"server-timing", server_timing),
    )


def _refused(
    refusal: Refusal, request_id: bytes, server_timing: bytes, more: tuple[tuple[bytes, bytes], ...] = ()
) -> PredictResponse:
    return PredictResponse(refusal.status, refusal.body(), (*_fields(request_id, server_timing), *more))


@asynccontextmanager
async def open_backend(config: Config) -> AsyncIterator[SlotBackend]:
    """Start an instance without fronts beside this process, and end it with it."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "twofold.server.embedded", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TWOFOLD_EMBEDDER_CONFIG": CATALOGUE.to_json(config)},
    )
    theirs.close()
    try:
        backend = await asyncio.wait_for(asyncio.to_thread(_receive, ours, config), START_TIMEOUT_S)
        loop = asyncio.get_running_loop()
        backend.dispatch.start(loop)
        ticking = loop.create_task(worker.tick_forever(TICK_S, backend.dispatch.tick, _say_bug))
        try:
            yield backend
        finally:
            ticking.cancel()
            loop.remove_reader(backend.dispatch.pipes.completions)
    finally:
        ours.close()  # the instance sees the end of the socket and stops in order
        await asyncio.to_thread(process.wait)


def _receive(ours: socket.socket, config: Config) -> SlotBackend:
    line, fds, _, _ = socket.recv_fds(ours, 4096, 3)
    if len(fds) != 3:
        raise TwofoldError("the instance could not start", "what it printed above says why")
    layout = slots.Layout(*loads(line))
    memory = slots.attach(fds[0], layout)
    os.close(fds[0])
    dispatch = Dispatch(memory, layout, 0, QueuePipes(fds[1], fds[2]), config.replicas.predict_timeout)
    return SlotBackend(dispatch, RequestIds())


def _say_bug(error: str) -> None:
    say("error", f"a bug in the tick of the embedded instance: {error}")
