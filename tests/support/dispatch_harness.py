"""The middle of an instance without its processes: real memory and pipes, clock and loop turned by hand."""

from __future__ import annotations

import os
import select
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

from twofold.server.config import Config, HttpSettings, ReplicaSettings
from twofold.server.front.dispatch import Dispatch, QueuePipes
from twofold.server.replica import frame, slots
from twofold.server.supervision import channels
from twofold.server.supervision.channels import Channels

SECOND = 1_000_000_000


@contextmanager
def open_channels(
    count: int = 8, body: int = 4096, answer: int = 4096, fronts: int = 1, replicas: int = 1
) -> Iterator[Channels]:
    """Channels for `count` slots with room for so many bytes, closed again at the end."""
    megabyte = channels.MEGABYTE
    http = HttpSettings(queue_size=count, max_body_mb=body / megabyte, max_answer_mb=answer / megabyte)
    pipes = channels.lay(Config(http=http, replicas=ReplicaSettings()), fronts, replicas)
    try:
        yield pipes
    finally:
        ends = [pipes.queue, pipes.reports, pipes.predict_log, pipes.native_log]
        for pipe in (*ends, *pipes.completions, *pipes.access_logs):
            os.close(pipe.read)
            os.close(pipe.write)
        for fd in (pipes.memory_fd, *pipes.crashes):
            os.close(fd)


def queue_pipes(pipes: Channels, front: int = 0) -> QueuePipes:
    return QueuePipes(pipes.queue.write, pipes.completions[front].read)


def readable(fd: int, timeout: float = 0.0) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


@dataclass
class Clock:
    """Stands in for the clock of a front's dispatch and its slots."""

    ns: int = 1_000 * SECOND

    def monotonic_ns(self) -> int:
        return self.ns

    @contextmanager
    def installed(self) -> Iterator[Clock]:
        with (
            mock.patch("twofold.server.front.dispatch.monotonic_ns", self.monotonic_ns),
            mock.patch("twofold.server.front.slot_table.monotonic_ns", self.monotonic_ns),
        ):
            yield self


@dataclass
class ManualLoop:
    """A loop that turns when it is told to."""

    readers: dict[int, Callable[[], None]] = field(default_factory=dict)
    soon: list[Callable[[], None]] = field(default_factory=list)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self.readers[fd] = callback

    def turn(self) -> None:
        """What was asked for, then whatever has arrived."""
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()
        for fd, callback in self.readers.items():
            if readable(fd):
                callback()

    def start(self, dispatch: Dispatch) -> None:
        dispatch.start(cast(AbstractEventLoop, self))


@dataclass
class RecordingCaller:
    """A caller that writes down what it is told, and gives its slot back as the protocol asks."""

    dispatch: Dispatch
    said: list[tuple[int, bytes]] = field(default_factory=list)  # outcome, answer
    slot: int = -1

    def answered(self, slot: int, size: int, outcome: int, *spent: int) -> None:
        self.slot = slot
        own = outcome < frame.RETRY
        self.said.append((outcome, bytes(self.dispatch.table.answer(slot, size)) if own else b""))
        if own:
            self.dispatch.table.release(slot, size)

    @property
    def outcomes(self) -> list[int]:
        return [outcome for outcome, _ in self.said]


@dataclass(frozen=True)
class Claim:
    """A descriptor that a replica has claimed."""

    slot: int
    generation: int
    size: int
    kind: int
    attempt: int
    skip: bool
    body: bytes


class FakeReplicas:
    """What replicas and the supervisor do with descriptors, by the rules of server/replica/loop.py."""

    def __init__(self, pipes: Channels, now: Callable[[], int] = time.monotonic_ns) -> None:
        self.pipes = pipes
        self.now = now

    def claim(self) -> Claim | None:
        """The next descriptor whose generation is the slot's; those of others are dropped."""
        memory, layout = self.pipes.memory, self.pipes.layout
        while readable(self.pipes.queue.read):
            raw = os.read(self.pipes.queue.read, frame.DESCRIPTOR_SIZE)
            slot, generation, size, kind, attempt, _ = frame.DESCRIPTOR.unpack(raw)
            base = layout.slot(slot)
            present, state, _, _, deadline, _ = slots.SLOT_HEADER.unpack_from(memory, base)
            if present == generation:
                start = base + slots.SLOT_HEADER_SIZE
                skip = state != slots.WAITING or self.now() > deadline
                return Claim(slot, generation, size, kind, attempt, skip, memory[start : start + size])
        return None

    def complete(self, claim: Claim, outcome: int, payload: bytes = b"", **spent: int) -> None:
        """A replica's word: the answer, then the completion."""
        base = self.pipes.layout.slot(claim.slot)
        if claim.skip:
            outcome, payload = frame.SKIPPED, b""
        start = base + self.pipes.layout.answer_offset
        self.pipes.memory[start : start + len(payload)] = payload
        self.pipes.memory[base + slots.STATE_OFFSET] = slots.DONE
        self._send(claim, len(payload), outcome, claim.attempt, **spent)

    def report_death(self, claim: Claim, outcome: int) -> None:
        """The supervisor's word: the replica that held this has died."""
        self._send(claim, claim.size, outcome, claim.attempt + 1, kind=claim.kind)

    def _send(self, claim: Claim, size: int, outcome: int, attempt: int, **spent: int) -> None:
        times: list[Any] = [spent.get(name, 0) for name in ("queue", "predict", "encode", "kind")]
        record = frame.COMPLETION.pack(claim.slot, claim.generation, size, outcome, attempt, 0, *times)
        front = claim.slot // self.pipes.layout.slots_per_front
        os.write(self.pipes.completions[front].write, record)
