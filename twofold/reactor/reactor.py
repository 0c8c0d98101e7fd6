"""Batched I/O of plain connections: each turn reads all ready sockets, calls the protocols, then sends.

Touches an epoll and the listeners.  The epoll is that of an EventLoop, which calls turn(); or its own, which
uvloop watches as one descriptor where TLS requires uvloop.

uvloop reads from one connection and calls its protocol before it reads from the next.  Each system call
evicts the interpreter from the processor's caches, and each single response wakes its receiver.  Batches do
both once for many connections, which saves a tenth of the cost of a request (docs/design.md, section 4).
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Callable
from select import EPOLLIN
from typing import Any, Final

from twofold.reactor.event_loop import MOST_EVENTS, EventLoop, Events
from twofold.reactor.transport import ConnectionProtocol, Transport

MOST_TURNS = 4  # before control returns to uvloop
MOST_ACCEPTED = 64
READ_SIZE: Final = 65536  # bytes; malloc would map and unmap a buffer above 128 KiB for each read
# Local resource exhaustion at accept(): listening is paused for PAUSE_S.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE_S = 0.1

Read = tuple[Transport, bytes]


class Reactor:
    """`dirty`: the transports with data to send."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.dirty: list[Transport] = []
        self._transports: dict[int, Transport] = {}
        self._turning = False
        self._listeners: set[socket.socket] = set()
        if isinstance(loop, EventLoop):
            self._epoll = loop.waiter.epoll
            loop.waiter.turn = self.turn
        else:
            self._epoll = select.epoll()
            loop.add_reader(self._epoll.fileno(), self._turns)

    def _turns(self) -> None:
        """Up to MOST_TURNS turns, without a return to the event loop in between."""
        for _ in range(MOST_TURNS):
            happened = self._epoll.poll(0, MOST_EVENTS)
            if not happened:
                return
            self.turn(happened)

    def turn(self, happened: Events) -> Events:
        """Serve the events, instances first: the credits that they free serve this turn's requests.

        Returns the events of descriptors that are not the reactor's.
        """
        self._turning = True
        answers, requests, writable, others = self._read(happened)
        # Two loops, one per class, because the interpreter's inline caches are per call site.
        for transport, data in answers:
            if data and transport.reading:
                try:
                    transport.protocol.data_received(data)
                except Exception as error:
                    self._broken(transport, error)
            else:
                self._call(transport, transport.received, data)
        for transport, data in requests:
            if data and transport.reading:
                try:
                    transport.protocol.data_received(data)
                except Exception as error:
                    self._broken(transport, error)
            else:
                self._call(transport, transport.received, data)
        for transport in writable:
            self._call(transport, transport.writable)
        self._turning = False
        self.flush()
        return others

    def _read(self, happened: Events) -> tuple[list[Read], list[Read], list[Transport], Events]:
        """(data of instances, data of clients, writable transports, events of other descriptors)"""
        transports, readable = self._transports, EPOLLIN
        answers, requests, writable, others = [], [], [], []
        for fd, events in happened:
            try:
                transport = transports[fd]
            except KeyError:
                others.append((fd, events))
                continue
            if events != readable and transport.out:
                writable.append(transport)
            if transport.reading:
                try:
                    data = transport.recv(READ_SIZE)
                except BlockingIOError:
                    continue
                except OSError as error:
                    transport.abort(error)
                    continue
                if not transport.first:
                    requests.append((transport, data))
                elif transport.protocol.expects():
                    answers.append((transport, data))
                else:  # at once: an idle connection that has ended must not be given a request in this turn
                    self.deliver(transport, data)
        return answers, requests, writable, others

    def deliver(self, transport: Transport, data: bytes) -> None:
        """Pass `data` to the protocol at once, outside the order of the turn."""
        self._call(transport, transport.protocol.data_received if data else transport.received, data)

    def _call(self, transport: Transport, what: Callable[..., None], *arguments: Any) -> None:
        """Call `what`; an exception aborts this transport only."""
        try:
            what(*arguments)
        except Exception as error:
            self._broken(transport, error)

    def _broken(self, transport: Transport, error: Exception) -> None:
        transport.abort()
        self.loop.call_exception_handler(
            {"message": "a connection's protocol failed", "exception": error, "transport": transport}
        )

    def expect(self) -> None:
        """Called before the first transport becomes dirty: outside a turn, schedule a flush."""
        if not self._turning:
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send the data of all dirty transports."""
        for transport in self.dirty:
            data = transport.out
            try:
                sent = transport.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                transport.abort(error)
                continue
            if sent == len(data) and transport.plain:
                transport.out = b""
            else:
                self._call(transport, transport.taken, sent)
        self.dirty.clear()

    # ------------------------------------------------------------------ for transports

    def watch(self, transport: Transport, fd: int, before: int, events: int) -> None:
        if not before:
            self._epoll.register(fd, events)
            self._transports[fd] = transport
        elif events:
            self._epoll.modify(fd, events)
        else:
            self._epoll.unregister(fd)
            del self._transports[fd]

    # ------------------------------------------------------------------ listening

    def listen(self, listener: socket.socket, made: Callable[[], ConnectionProtocol]) -> None:
        listener.setblocking(False)
        self._listeners.add(listener)
        self._listen_on(listener, made)

    def _listen_on(self, listener: socket.socket, made: Callable[[], ConnectionProtocol]) -> None:
        if listener in self._listeners:
            self.loop.add_reader(listener.fileno(), self._accept, listener, made)

    def stop_listening(self) -> None:
        while self._listeners:
            self.loop.remove_reader(self._listeners.pop().fileno())

    def _accept(self, listener: socket.socket, made: Callable[[], ConnectionProtocol]) -> None:
        for _ in range(MOST_ACCEPTED):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:  # an error of that connection only
                    continue
                self.loop.remove_reader(listener.fileno())
                self.loop.call_later(PAUSE_S, self._listen_on, listener, made)
                return
            sock.setblocking(False)
            Transport(self, sock, made())
