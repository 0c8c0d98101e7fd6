"""The loop that waits in the reactor's epoll is all of asyncio: timers, callbacks, descriptors, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from twofold.reactor.event_loop import EventLoop
from twofold.reactor.reactor import Reactor
from twofold.reactor.transport import ConnectionProtocol, Transport


class Echo(ConnectionProtocol):
    """Sends back what comes, so that the reactor of both ends has no rest."""

    def __init__(self) -> None:
        self.count = 0
        self.transport: Transport = None  # type: ignore[assignment]
        self.on_data: Callable[[], object] = lambda: None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.count += 1
        self.on_data()
        self.transport.write(data)


class Rally:
    """Two connections of one reactor that play a ball back and forth."""

    def __init__(self) -> None:
        self.reactor = Reactor(asyncio.get_running_loop())
        self.ends = (Echo(), Echo())
        for sock, end in zip(socket.socketpair(), self.ends, strict=True):
            sock.setblocking(False)
            Transport(self.reactor, sock, end)

    @property
    def count(self) -> int:
        return self.ends[0].count

    def serve(self) -> None:
        self.ends[0].transport.write(b"o")

    def close(self) -> None:
        for end in self.ends:
            end.transport.abort()


def play(part: Callable[[Rally], Awaitable[None]]) -> None:
    async def whole() -> None:
        rally = Rally()
        try:
            async with asyncio.timeout(20):
                await part(rally)
        finally:
            rally.close()
            await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(whole())


def test_timers_are_called_while_the_reactor_has_no_rest() -> None:
    async def part(rally: Rally) -> None:
        rally.serve()
        began = asyncio.get_running_loop().time()
        for _ in range(10):
            await asyncio.sleep(0.02)
        assert rally.count > 100
        assert asyncio.get_running_loop().time() - began < 2.0

    play(part)


def test_what_a_protocol_asks_of_the_loop_is_done_at_once() -> None:
    """Nothing else wakes it up: the ball is played once."""

    async def part(rally: Rally) -> None:
        loop = asyncio.get_running_loop()
        heard: dict[str, float] = {}
        done = asyncio.Event()

        def ask() -> None:
            rally.ends[0].transport.pause_reading()
            loop.call_soon(lambda: heard.setdefault("soon", loop.time()))
            loop.call_later(0.05, late)
            heard["asked"] = loop.time()

        def late() -> None:
            heard["later"] = loop.time()
            done.set()

        rally.ends[1].on_data = ask
        rally.serve()
        await done.wait()
        assert heard["soon"] - heard["asked"] < 0.04
        assert 0.04 < heard["later"] - heard["asked"] < 1.0

    play(part)


def test_a_protocol_may_stop_the_loop() -> None:
    """Which is not to wait for the next timer."""
    loop = EventLoop()

    async def begin() -> Rally:
        rally = Rally()
        rally.ends[1].on_data = loop.stop
        rally.ends[0].on_data = rally.ends[0].transport.pause_reading
        rally.serve()
        return rally

    try:
        rally = loop.run_until_complete(begin())
        loop.call_later(5.0, lambda: None)
        began = loop.time()
        loop.run_forever()
        assert loop.time() - began < 2.0
        rally.close()
        loop.run_until_complete(asyncio.sleep(0.01))
    finally:
        loop.close()


def test_a_timer_that_is_asked_for_first_is_not_held_back_by_a_later_one() -> None:
    async def part(rally: Rally) -> None:
        loop = asyncio.get_running_loop()
        order: list[str] = []
        loop.call_later(5.0, order.append, "last")
        await asyncio.sleep(0.01)
        loop.call_later(0.05, order.append, "first")
        await asyncio.sleep(0.2)
        assert order == ["first"]

    play(part)


def test_descriptors_of_others_are_heard_beside_the_reactors() -> None:
    async def part(rally: Rally) -> None:
        loop = asyncio.get_running_loop()
        rally.serve()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            for number in range(20):
                loop.call_later(0.001, theirs.send, b"%d" % number)
                assert await loop.sock_recv(ours, 10) == b"%d" % number
            writable = asyncio.Event()
            loop.add_reader(ours.fileno(), lambda: None)
            loop.add_writer(ours.fileno(), writable.set)
            await writable.wait()
            assert loop.remove_writer(ours.fileno()) and loop.remove_reader(ours.fileno())
            assert not loop.remove_reader(ours.fileno())
            theirs.close()
            assert await loop.sock_recv(ours, 10) == b""
        assert rally.count > 20

    play(part)


@pytest.fixture
def asked() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_signals_and_other_threads_wake_it_up(asked: None) -> None:
    async def part(rally: Rally) -> None:
        loop = asyncio.get_running_loop()
        signalled, called = asyncio.Event(), asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, signalled.set)
        killer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        caller = threading.Timer(0.05, loop.call_soon_threadsafe, (called.set,))
        for thread in (killer, caller):
            thread.start()
        async with asyncio.timeout(5):
            await signalled.wait()
            await called.wait()
        for thread in (killer, caller):
            thread.join()
        loop.remove_signal_handler(signal.SIGUSR1)

    play(part)


def test_servers_and_streams_of_asyncio_work_on_it() -> None:
    async def part(rally: Rally) -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline() * 10000)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"good day\n")
            assert await reader.read() == b"good day\n" * 10000
            writer.close()
            await writer.wait_closed()

    play(part)


def test_a_descriptor_is_registered_once_and_may_be_closed_before_it_is_given_up() -> None:
    loop = EventLoop()
    try:
        ours, theirs = socket.socketpair()
        loop.waiter.register(ours, 1)
        with pytest.raises(KeyError):
            loop.waiter.register(ours.fileno(), 1)
        with pytest.raises(KeyError):
            loop.waiter.modify(theirs, 1)
        number = ours.fileno()
        assert loop.waiter.get_key(ours) == loop.waiter.get_key(number)
        ours.close()
        theirs.close()
        assert loop.waiter.unregister(number).fd == number
        with pytest.raises(KeyError):
            loop.waiter.get_key(number)
    finally:
        loop.close()
