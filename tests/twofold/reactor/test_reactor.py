"""Transports of the reactor over real sockets: order, back-pressure, ends, and what one failure may touch."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop

from twofold.reactor.event_loop import EventLoop
from twofold.reactor.reactor import Reactor
from twofold.reactor.transport import ConnectionProtocol, Transport

MB = 1 << 20


class Recorder(ConnectionProtocol):
    """Notes what it is told, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.data = b""
        self.client: object = None  # as of an instance's connection that waits for an answer
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.transport: Transport = None  # type: ignore[assignment]
        self.on_data: Callable[[bytes], None] = lambda data: None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def expects(self) -> bool:
        return self.client is not None

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.on_data(data)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)


class Scene:
    """A reactor on the running loop, and pairs of connected sockets: ours with a transport, theirs bare."""

    def __init__(self) -> None:
        self.reactor = Reactor(asyncio.get_running_loop())
        self.theirs: list[socket.socket] = []
        self.ours: list[Recorder] = []
        self._listener = socket.create_server(("127.0.0.1", 0))

    def pair(self, local: bool = False, first: bool = False) -> tuple[Recorder, socket.socket]:
        if local:
            ours, theirs = socket.socketpair()
        else:
            theirs = socket.create_connection(self._listener.getsockname())
            ours, _ = self._listener.accept()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.theirs.append(theirs)
        recorder = Recorder()
        self.ours.append(recorder)
        Transport(self.reactor, ours, recorder, first)
        return recorder, theirs

    def close(self) -> None:
        for recorder in self.ours:
            recorder.transport.abort()
        for sock in [*self.theirs, self._listener]:
            sock.close()


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    try:
        yield made
    finally:
        made.close()
        await asyncio.sleep(0.05)


def play(part: Callable[[Scene], Awaitable[None]]) -> None:
    """On the loop that waits in the reactor's epoll, and on one that watches it."""

    async def whole() -> None:
        async with scene() as made, asyncio.timeout(20):
            await part(made)

    for factory in (EventLoop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(whole())


async def take(theirs: socket.socket, size: int) -> bytes:
    """So many bytes of what was sent to the other side, or all until its end."""
    data = b""
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(theirs, 65536)
        if not piece:
            break
        data += piece
    return data


@pytest.mark.parametrize("local", [False, True], ids=["tcp", "unix"])
def test_what_the_socket_does_not_take_follows_in_order_and_holds_the_writer_back(local: bool) -> None:
    async def part(scene: Scene) -> None:
        ours, theirs = scene.pair(local)
        ours.transport.set_write_buffer_limits(high=256 * 1024, low=64 * 1024)
        sent = b""
        while "pause" not in ours.events:
            piece = bytes([len(sent) // 65536 % 256]) * 65536
            ours.transport.write(piece)
            sent += piece
            await asyncio.sleep(0)
        assert ours.transport.get_write_buffer_size() > 256 * 1024
        assert await take(theirs, len(sent)) == sent
        assert ours.events == ["pause", "resume"]

    play(part)


def test_a_writer_that_is_held_back_in_a_turn_goes_on_though_the_socket_takes_all_at_once() -> None:
    async def part(scene: Scene) -> None:
        ours, theirs = scene.pair()
        ours.transport.set_write_buffer_limits(high=1000, low=100)
        ours.transport.write(b"a" * 900)
        ours.transport.write(b"b" * 900)
        assert ours.events == ["pause"]
        assert await take(theirs, 1800) == b"a" * 900 + b"b" * 900
        assert ours.events == ["pause", "resume"]

    play(part)


def test_a_writer_that_is_let_go_on_may_be_held_back_at_once() -> None:
    async def part(scene: Scene) -> None:
        ours, theirs = scene.pair()
        ours.transport.set_write_buffer_limits(high=1000, low=100)
        more, resumed = [2000, 2000, 2000], ours.resume_writing

        def write_on() -> None:
            resumed()
            if more:
                ours.transport.write(b"b")
                ours.transport.write(b"b" * more.pop())

        ours.resume_writing = write_on  # type: ignore[method-assign]
        ours.transport.write(b"a")
        ours.transport.write(b"a" * 4 * MB)
        assert len(await take(theirs, 4 * MB + 6004)) == 4 * MB + 6004
        assert ours.events == ["pause", "resume"] * 4

    play(part)


def test_what_was_read_before_a_pause_waits_for_the_end_of_it() -> None:
    """Two connections speak in one turn, and what the first one says makes the other's reader pause."""

    async def part(scene: Scene) -> None:
        pairs = [scene.pair() for _ in range(2)]
        (one, their_one), (other, their_other) = pairs
        for (here, _), (there, _) in ((pairs[0], pairs[1]), (pairs[1], pairs[0])):
            here.on_data = lambda data, there=there: there.transport.pause_reading()  # type: ignore[misc]
        their_one.send(b"1")
        their_other.send(b"2")
        await asyncio.sleep(0.05)
        assert sorted((one.data, other.data)) in ([b"", b"1"], [b"", b"2"])
        late, sender = (one, their_one) if not one.data else (other, their_other)
        before = late.data
        sender.send(b"34")
        await asyncio.sleep(0.05)
        assert late.data == before == b""
        late.transport.resume_reading()
        late.transport.pause_reading()
        await asyncio.sleep(0.05)
        assert not late.data, "resumed and paused again: nothing is wanted"
        late.transport.resume_reading()
        await asyncio.sleep(0.05)
        assert late.data in (b"134", b"234")

    play(part)


@pytest.mark.parametrize("early", [0, 1])
def test_what_nobody_asked_for_is_told_before_an_answer(early: int) -> None:
    """An answer makes room, and the next request may be given to the connection that is at its end."""

    async def part(scene: Scene) -> None:
        order: list[str] = []
        (asked, their_asked), (idle, their_idle) = scene.pair(first=True), scene.pair(first=True)
        asked.client = object()
        asked.on_data = lambda data: order.append("answer")
        idle.on_data = lambda data: order.append("rubbish")
        for theirs in ((their_asked, their_idle), (their_idle, their_asked))[early]:
            theirs.send(b"x")
        await asyncio.sleep(0.05)
        assert order == ["rubbish", "answer"]
        asked.on_data = lambda data: order.append("closing" if idle.transport.is_closing() else "open")
        for step in (their_asked.send, lambda _: their_idle.close())[:: 1 - 2 * early]:
            step(b"x")
        await asyncio.sleep(0.05)
        assert order[2:] == ["closing"]

    play(part)


@pytest.mark.parametrize("early", [0, 1])
def test_what_instances_send_is_told_before_all_else_of_its_turn(early: int) -> None:
    """The end of an idle connection must be known before a request is given to it."""

    async def part(scene: Scene) -> None:
        order: list[str] = []
        (client, their_client), (idle, their_idle) = scene.pair(), scene.pair(first=True)
        client.on_data = lambda data: order.append("request")
        idle.on_data = lambda data: order.append("rubbish")
        for theirs in ((their_client, their_idle), (their_idle, their_client))[early]:
            theirs.send(b"x")
        await asyncio.sleep(0.05)
        assert order == ["rubbish", "request"]
        client.on_data = lambda data: order.append("closing" if idle.transport.is_closing() else "open")
        for step in (their_client.send, lambda _: their_idle.close())[:: 1 - 2 * early]:
            step(b"x")
        await asyncio.sleep(0.05)
        assert order[2:] == ["closing"]

    play(part)


def test_close_sends_what_waits() -> None:
    async def part(scene: Scene) -> None:
        for size in (10, 4 * MB):
            ours, theirs = scene.pair()
            ours.transport.write(b"x" * size)
            ours.transport.close()
            assert ours.transport.is_closing()
            assert len(await take(theirs, 5 * MB)) == size
            assert await ours.lost is None

    play(part)


def test_the_end_of_the_stream_follows_what_was_written() -> None:
    async def part(scene: Scene) -> None:
        for size in (10, 4 * MB):
            ours, theirs = scene.pair()
            ours.transport.write(b"x" * size)
            ours.transport.write_eof()
            assert len(await take(theirs, 5 * MB)) == size
            theirs.send(b"still heard")
            await asyncio.sleep(0.05)
            assert ours.data == b"still heard" and not ours.events.count("lost")

    play(part)


def test_abort_drops_what_waits_and_is_told_of_later() -> None:
    async def part(scene: Scene) -> None:
        ours, theirs = scene.pair()
        ours.transport.write(b"never sent")
        ours.transport.abort()
        ours.transport.write(b"nor this")
        assert not ours.events, "a protocol is never called from within its own call"
        assert await ours.lost is None
        assert await take(theirs, 100) == b""

    play(part)


def test_the_other_sides_end_closes_after_what_waits() -> None:
    async def part(scene: Scene) -> None:
        ours, theirs = scene.pair()
        ours.on_data = lambda data: ours.transport.write(b"y" * 2 * MB)
        theirs.send(b"one question")
        theirs.shutdown(socket.SHUT_WR)
        assert len(await take(theirs, 3 * MB)) == 2 * MB
        assert await ours.lost is None

    play(part)


@pytest.mark.parametrize("paused", [False, True], ids=["reading", "paused"])
def test_a_reset_ends_a_connection_and_costs_nothing_where_nobody_reads(paused: bool) -> None:
    async def part(scene: Scene) -> None:
        ours, theirs = scene.pair()
        if paused:
            ours.transport.pause_reading()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        if paused:
            before = time.process_time()
            await asyncio.sleep(0.3)
            assert time.process_time() - before < 0.15, "the loop turns and turns"
            ours.transport.resume_reading()
        assert isinstance(await ours.lost, ConnectionResetError)

    play(part)


def test_writing_to_who_has_left_ends_the_connection() -> None:
    async def part(scene: Scene) -> None:
        ours, theirs = scene.pair(local=True)
        ours.transport.pause_reading()
        theirs.close()
        ours.transport.write(b"anybody there?")
        assert isinstance(await ours.lost, BrokenPipeError)

    play(part)


def test_a_protocol_that_fails_loses_its_own_connection_only() -> None:
    async def part(scene: Scene) -> None:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(str(what["exception"])))
        (bad, their_bad), (good, their_good) = scene.pair(), scene.pair()
        good.on_data = lambda data: good.transport.write(data)

        def fail(data: bytes) -> None:
            raise ValueError("a defect")

        bad.on_data = fail
        their_bad.send(b"x")
        their_good.send(b"y")
        assert await take(their_good, 1) == b"y"
        await bad.lost
        assert told == ["a defect"] and await take(their_bad, 1) == b""

    play(part)


def test_nobody_paces_what_stays_on_this_machine() -> None:
    async def part(scene: Scene) -> None:
        ours, _ = scene.pair()
        sock = ours.transport.get_extra_info("socket")
        control = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert control.rstrip(b"\0") == b"reno"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    play(part)


def test_nothing_is_left_of_those_who_have_gone() -> None:
    async def part(scene: Scene) -> None:
        for _ in range(100):
            ours, theirs = scene.pair()
            theirs.close()
            await ours.lost
        assert not scene.reactor._transports and not scene.reactor.dirty
        with pytest.raises(OSError) as error:
            ours.transport.get_extra_info("socket").getsockname()
        assert error.value.errno == errno.EBADF

    play(part)


def test_without_descriptors_a_newcomer_waits_until_there_are_some() -> None:
    async def part(scene: Scene) -> None:
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[-1]

        listener = socket.create_server(("127.0.0.1", 0))
        scene.theirs.append(listener)
        scene.reactor.listen(listener, factory)
        callers = [socket.socket() for _ in range(3)]
        scene.theirs += callers
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = socket.socket()
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare.fileno() + 1, limits[1]))
        try:
            for caller in callers:
                caller.connect(listener.getsockname())
            await asyncio.sleep(0.2)
            assert not made
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            spare.close()
        async with asyncio.timeout(5):
            while len(made) < 3:
                await asyncio.sleep(0.02)
        callers[0].send(b"here")
        async with asyncio.timeout(5):
            while not any(one.data for one in made):
                await asyncio.sleep(0.02)
        scene.reactor.stop_listening()

    play(part)
