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

from tests.support.eventually import eventually_async, never_async
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


class ReactorSockets:
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

    async def close(self) -> None:
        for recorder in self.ours:
            recorder.transport.abort()
        for recorder in self.ours:
            await recorder.lost
        for sock in [*self.theirs, self._listener]:
            sock.close()


@contextlib.asynccontextmanager
async def reactor_sockets() -> AsyncIterator[ReactorSockets]:
    made = ReactorSockets()
    try:
        yield made
    finally:
        await made.close()


def run_on_both_loops(scenario: Callable[[ReactorSockets], Awaitable[None]]) -> None:
    """On the loop that waits in the reactor's epoll, and on one that watches it."""

    async def whole() -> None:
        async with asyncio.timeout(20), reactor_sockets() as made:
            await scenario(made)

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
def test_a_full_socket_buffer_keeps_the_order_and_pauses_the_writer(local: bool) -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        ours, theirs = sockets.pair(local)
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

    run_on_both_loops(scenario)


def test_a_paused_writer_is_resumed_when_the_socket_takes_all_at_once() -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        ours, theirs = sockets.pair()
        ours.transport.set_write_buffer_limits(high=1000, low=100)
        ours.transport.write(b"a" * 900)
        ours.transport.write(b"b" * 900)
        assert ours.events == ["pause"]
        assert await take(theirs, 1800) == b"a" * 900 + b"b" * 900
        assert ours.events == ["pause", "resume"]

    run_on_both_loops(scenario)


def test_a_writer_may_be_paused_again_while_it_is_resumed() -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        ours, theirs = sockets.pair()
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

    run_on_both_loops(scenario)


def test_data_read_before_a_pause_is_delivered_after_it() -> None:
    """Two connections speak in one turn, and what the first one says makes the other's reader pause."""

    async def scenario(sockets: ReactorSockets) -> None:
        pairs = [sockets.pair() for _ in range(2)]
        (one, their_one), (other, their_other) = pairs
        for (here, _), (there, _) in ((pairs[0], pairs[1]), (pairs[1], pairs[0])):
            here.on_data = lambda data, there=there: there.transport.pause_reading()  # type: ignore[misc]
        their_one.send(b"1")
        their_other.send(b"2")
        await eventually_async(lambda: one.data or other.data, "what one of them says")
        late, sender = (one, their_one) if not one.data else (other, their_other)
        sender.send(b"34")
        await never_async(lambda: late.data, "data for a reader that pauses", 0.1)
        late.transport.resume_reading()
        late.transport.pause_reading()
        await never_async(lambda: late.data, "data for a reader that has resumed and paused again", 0.1)
        late.transport.resume_reading()
        await eventually_async(lambda: late.data in (b"134", b"234"), lambda: late.data)

    run_on_both_loops(scenario)


@pytest.mark.parametrize("early", [0, 1])
def test_unexpected_data_is_delivered_before_responses(early: int) -> None:
    """An answer makes room, and the next request may be given to the connection that is at its end."""

    async def scenario(sockets: ReactorSockets) -> None:
        order: list[str] = []
        (asked, their_asked), (idle, their_idle) = sockets.pair(first=True), sockets.pair(first=True)
        asked.client = object()
        asked.on_data = lambda data: order.append("answer")
        idle.on_data = lambda data: order.append("rubbish")
        for theirs in ((their_asked, their_idle), (their_idle, their_asked))[early]:
            theirs.send(b"x")
        await eventually_async(lambda: len(order) == 2, order)
        assert order == ["rubbish", "answer"]
        asked.on_data = lambda data: order.append("closing" if idle.transport.is_closing() else "open")
        for step in (their_asked.send, lambda _: their_idle.close())[:: 1 - 2 * early]:
            step(b"x")
        await eventually_async(lambda: len(order) == 3, order)
        assert order[2] == "closing"

    run_on_both_loops(scenario)


@pytest.mark.parametrize("early", [0, 1])
def test_data_of_instances_is_delivered_before_that_of_clients(early: int) -> None:
    """The end of an idle connection must be known before a request is given to it."""

    async def scenario(sockets: ReactorSockets) -> None:
        order: list[str] = []
        (client, their_client), (idle, their_idle) = sockets.pair(), sockets.pair(first=True)
        client.on_data = lambda data: order.append("request")
        idle.on_data = lambda data: order.append("rubbish")
        for theirs in ((their_client, their_idle), (their_idle, their_client))[early]:
            theirs.send(b"x")
        await eventually_async(lambda: len(order) == 2, order)
        assert order == ["rubbish", "request"]
        client.on_data = lambda data: order.append("closing" if idle.transport.is_closing() else "open")
        for step in (their_client.send, lambda _: their_idle.close())[:: 1 - 2 * early]:
            step(b"x")
        await eventually_async(lambda: len(order) == 3, order)
        assert order[2] == "closing"

    run_on_both_loops(scenario)


def test_close_sends_the_buffer_first() -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        for size in (10, 4 * MB):
            ours, theirs = sockets.pair()
            ours.transport.write(b"x" * size)
            ours.transport.close()
            assert ours.transport.is_closing()
            assert len(await take(theirs, 5 * MB)) == size
            assert await ours.lost is None

    run_on_both_loops(scenario)


@pytest.mark.parametrize("size", [10, 4 * MB])
def test_an_eof_is_sent_after_the_buffer_and_reading_goes_on(size: int) -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        ours, theirs = sockets.pair()
        ours.transport.write(b"x" * size)
        ours.transport.write_eof()
        assert len(await take(theirs, 5 * MB)) == size
        theirs.send(b"still heard")
        await eventually_async(lambda: ours.data == b"still heard", lambda: ours.data)
        assert "lost" not in ours.events

    run_on_both_loops(scenario)


def test_abort_drops_the_buffer_and_is_reported_after_the_call() -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        ours, theirs = sockets.pair()
        ours.transport.write(b"never sent")
        ours.transport.abort()
        ours.transport.write(b"nor this")
        assert not ours.events, "a protocol is never called from within its own call"
        assert await ours.lost is None
        assert await take(theirs, 100) == b""

    run_on_both_loops(scenario)


def test_an_eof_closes_the_connection_after_the_buffer_is_sent() -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        ours, theirs = sockets.pair()
        ours.on_data = lambda data: ours.transport.write(b"y" * 2 * MB)
        theirs.send(b"one question")
        theirs.shutdown(socket.SHUT_WR)
        assert len(await take(theirs, 3 * MB)) == 2 * MB
        assert await ours.lost is None

    run_on_both_loops(scenario)


@pytest.mark.parametrize("paused", [False, True], ids=["reading", "paused"])
def test_a_reset_ends_a_connection_and_a_paused_one_does_not_spin(paused: bool) -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        ours, theirs = sockets.pair()
        if paused:
            ours.transport.pause_reading()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        if paused:
            before = time.process_time()
            await never_async(ours.lost.done, "an end reported to a paused reader")
            assert time.process_time() - before < 0.15, "the loop turns and turns"
            ours.transport.resume_reading()
        assert isinstance(await ours.lost, ConnectionResetError)

    run_on_both_loops(scenario)


def test_writing_to_a_closed_peer_ends_the_connection() -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        ours, theirs = sockets.pair(local=True)
        ours.transport.pause_reading()
        theirs.close()
        ours.transport.write(b"anybody there?")
        assert isinstance(await ours.lost, BrokenPipeError)

    run_on_both_loops(scenario)


def test_a_protocol_that_fails_loses_its_own_connection_only() -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(str(what["exception"])))
        (bad, their_bad), (good, their_good) = sockets.pair(), sockets.pair()
        good.on_data = lambda data: good.transport.write(data)

        def fail(data: bytes) -> None:
            raise ValueError("a defect")

        bad.on_data = fail
        their_bad.send(b"x")
        their_good.send(b"y")
        assert await take(their_good, 1) == b"y"
        await bad.lost
        assert told == ["a defect"] and await take(their_bad, 1) == b""

    run_on_both_loops(scenario)


def test_loopback_connections_are_not_paced() -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        ours, _ = sockets.pair()
        sock = ours.transport.get_extra_info("socket")
        control = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert control.rstrip(b"\0") == b"reno"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run_on_both_loops(scenario)


def test_ended_connections_leave_nothing_in_the_reactor() -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        for _ in range(100):
            ours, theirs = sockets.pair()
            theirs.close()
            await ours.lost
        assert not sockets.reactor._transports and not sockets.reactor.dirty
        with pytest.raises(OSError) as error:
            ours.transport.get_extra_info("socket").getsockname()
        assert error.value.errno == errno.EBADF

    run_on_both_loops(scenario)


def test_without_free_descriptors_new_connections_wait() -> None:
    async def scenario(sockets: ReactorSockets) -> None:
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            sockets.ours.append(made[-1])
            return made[-1]

        listener = socket.create_server(("127.0.0.1", 0))
        sockets.theirs.append(listener)
        sockets.reactor.listen(listener, factory)
        callers = [socket.socket() for _ in range(3)]
        sockets.theirs += callers
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = socket.socket()
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare.fileno() + 1, limits[1]))
        try:
            for caller in callers:
                caller.connect(listener.getsockname())
            await never_async(lambda: made, "a connection without a descriptor", 0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            spare.close()
        await eventually_async(lambda: len(made) == 3, "three connections")
        callers[0].send(b"here")
        await eventually_async(lambda: any(one.data for one in made), "data")
        sockets.reactor.stop_listening()

    run_on_both_loops(scenario)
