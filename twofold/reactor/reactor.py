"""The sockets of plain connections, in turns: read all that is there, think, send all that came of it.

Touches an epoll and the listeners.  The epoll is that of an EventLoop, which waits there and calls turn(); or
it is one of its own, which uvloop watches as one descriptor where it is needed for TLS.

uvloop reads from a connection, calls its protocol, reads from the next.  Each way through the kernel
costs the interpreter its place in the processor's caches, and those who get their answers one by one
wake up in between.  In turns, both happen once for many connections; that spares a tenth of what a
request costs (docs/design.md, section 4).
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

MOST_TURNS = 4  # before uvloop is asked again
MOST_ACCEPTED = 64
READ_SIZE: Final = 65536  # bytes; a buffer of more than 128 KiB would be mapped and unmapped for each read
# What is missing here when a connection cannot be accepted. It waits in the kernel for so long.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE_S = 0.1  # seconds

Read = tuple[Transport, bytes]


class Reactor:
    """`dirty`: the transports that have something to send."""

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
        """While one follows the other there is no need to ask the event loop in between."""
        for _ in range(MOST_TURNS):
            happened = self._epoll.poll(0, MOST_EVENTS)
            if not happened:
                return
            self.turn(happened)

    def turn(self, happened: Events) -> Events:
        """Instances first: what their answers free is free for this turn's requests.

        Returns what happened to descriptors that are not its transports'.
        """
        self._turning = True
        answers, requests, writable, others = self._read(happened)
        # Two loops, each of one class: the interpreter remembers at each call what it has found there.
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
        """(what instances have sent, what clients have, who can write again, what is nobody's here)"""
        transports, readable = self._transports, EPOLLIN
        answers, requests, writable, others = [], [], [], []
        for fd, events in happened:
            try:
                transport = transports[fd]  # nobody leaves before all is read
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
                else:  # before an answer makes room, and somebody is given to a connection that is at its end
                    self.deliver(transport, data)
        return answers, requests, writable, others

    def deliver(self, transport: Transport, data: bytes) -> None:
        """What is not to wait for others of its turn."""
        self._call(transport, transport.protocol.data_received if data else transport.received, data)

    def _call(self, transport: Transport, what: Callable[..., None], *arguments: Any) -> None:
        """Nobody's failure must keep the others from being served."""
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
        """The first of the dirty ones is about to be: outside a turn, somebody must send."""
        if not self._turning:
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what has been written."""
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
                if error.errno not in EXHAUSTED:  # of that connection: it has left, or its network is gone
                    continue
                self.loop.remove_reader(listener.fileno())
                self.loop.call_later(PAUSE_S, self._listen_on, listener, made)
                return
            sock.setblocking(False)
            Transport(self, sock, made())
