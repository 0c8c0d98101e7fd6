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
    """Sends back what comes, so that the reactor of both ends is never idle."""

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


class PingPong:
    """Two connections of one reactor that send one byte back and forth."""

    def __init__(self) -> None:
        self.reactor = Reactor(asyncio.get_running_loop())
        self.ends = (Echo(), Echo())
        for sock, end in zip(socket.socketpair(), self.ends, strict=True):
            sock.setblocking(False)
            Transport(self.reactor, sock, end)

    @property
    def count(self) -> int:
        return self.ends[0].count

    def start(self) -> None:
        self.ends[0].transport.write(b"o")

    def close(self) -> None:
        for end in self.ends:
            end.transport.abort()


def run(scenario: Callable[[PingPong], Awaitable[None]]) -> None:
    async def whole() -> None:
        traffic = PingPong()
        try:
            async with asyncio.timeout(20):
                await scenario(traffic)
        finally:
            traffic.close()
            await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(whole())


def test_timers_are_called_while_the_reactor_is_busy() -> None:
    async def scenario(traffic: PingPong) -> None:
        traffic.start()
        for _ in range(10):
            await asyncio.sleep(0.02)
        assert traffic.count > 10

    run(scenario)


def test_a_callback_asked_for_by_a_protocol_needs_no_timer_to_be_called() -> None:
    """No other event wakes the loop: one byte is sent once."""

    async def scenario(traffic: PingPong) -> None:
        loop = asyncio.get_running_loop()
        called = asyncio.Event()

        def ask() -> None:
            traffic.ends[0].transport.pause_reading()
            loop.call_soon(called.set)

        traffic.ends[1].on_data = ask
        traffic.start()
        await called.wait()

    run(scenario)


def test_a_timer_asked_for_by_a_protocol_is_called_in_time() -> None:
    """No other event wakes the loop: one byte is sent once."""

    async def scenario(traffic: PingPong) -> None:
        loop = asyncio.get_running_loop()
        called = asyncio.Event()
        asked_at: list[float] = []

        def ask() -> None:
            traffic.ends[0].transport.pause_reading()
            loop.call_later(0.05, called.set)
            asked_at.append(loop.time())

        traffic.ends[1].on_data = ask
        traffic.start()
        await called.wait()
        assert loop.time() - asked_at[0] > 0.04

    run(scenario)


def test_a_protocol_may_stop_the_loop() -> None:
    """Before the next timer."""
    loop = EventLoop()

    async def begin() -> PingPong:
        traffic = PingPong()
        traffic.ends[1].on_data = loop.stop
        traffic.ends[0].on_data = traffic.ends[0].transport.pause_reading
        traffic.start()
        return traffic

    try:
        traffic = loop.run_until_complete(begin())
        late: list[str] = []
        loop.call_later(5.0, late.append, "the timer")
        loop.run_forever()
        assert not late
        traffic.close()
        loop.run_until_complete(asyncio.sleep(0.01))
    finally:
        loop.close()


def test_a_later_timer_does_not_hold_back_an_earlier_one() -> None:
    async def scenario(traffic: PingPong) -> None:
        loop = asyncio.get_running_loop()
        late: list[str] = []
        first = asyncio.Event()
        loop.call_later(5.0, late.append, "the later timer")
        await asyncio.sleep(0.01)
        loop.call_later(0.05, first.set)
        await first.wait()
        assert not late

    run(scenario)


def test_other_descriptors_are_watched_beside_the_reactors() -> None:
    async def scenario(traffic: PingPong) -> None:
        loop = asyncio.get_running_loop()
        traffic.start()
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
        assert traffic.count > 20

    run(scenario)


@pytest.fixture
def sigusr1() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_signals_and_other_threads_wake_the_loop(sigusr1: None) -> None:
    async def scenario(traffic: PingPong) -> None:
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

    run(scenario)


def test_servers_and_streams_of_asyncio_work_on_the_loop() -> None:
    async def scenario(traffic: PingPong) -> None:
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

    run(scenario)


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
