"""The transport of a connection, whose socket I/O is done by the reactor.

Touches its socket, and the reactor's epoll.  ConnectionProtocol and Transport have asyncio's interfaces, but
do not derive from asyncio's classes, because a compiled class cannot have an interpreted base class (see
twofold/native/load.py).  TLS uses uvloop's transports, which have the same interface.

write() only buffers: the reactor sends at the end of its turn, for all connections.  Above `high` buffered
bytes the protocol is paused, as in asyncio.
"""

from __future__ import annotations

import contextlib
import socket
from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING, Any

from twofold.native.attributes import mypyc_attr

if TYPE_CHECKING:
    from twofold.reactor.reactor import Reactor

PLAIN_CONTROL = b"reno"  # a congestion control that every kernel has, usually without privileges


@mypyc_attr(allow_interpreted_subclasses=True)  # for the tests
class ConnectionProtocol:
    """The callbacks of a connection."""

    __slots__ = ()

    def connection_made(self, transport: Any) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def expects(self) -> bool:
        """Whether incoming data is expected now."""
        return True


NULL_PROTOCOL = ConnectionProtocol()  # the protocol of a closed transport; ignores all calls


class Transport:
    """`reading`: the connection is open and the protocol has not paused it. `out`: buffered bytes to send.

    `first`: an upstream connection, whose data is delivered before that of clients in the same turn; and at
    once if its protocol expects none, so that no request is given to a connection that has ended.
    """

    __deletable__ = ("recv", "send")
    __slots__ = (
        "_choked", "_closing", "_dirty", "_eof", "_high", "_low", "_reactor", "_sock",
        "_undelivered", "_wanted", "_watched", "first", "out", "plain", "protocol", "reading",
        "recv", "send",
    )  # fmt: skip

    def __init__(
        self, reactor: Reactor, sock: socket.socket, protocol: ConnectionProtocol, first: bool = False
    ) -> None:
        """Begin to read for `protocol`. `sock` must be non-blocking; the transport owns it."""
        self._reactor = reactor
        self._dirty = reactor.dirty
        self._sock = sock
        self.recv, self.send = sock.recv, sock.send
        self.reading = True
        self.first = first
        self.out: bytes | bytearray = b""
        self.plain = True  # no state change is pending for when all is sent
        self._wanted = True
        self._undelivered = b""  # read in the turn in which the protocol paused reading
        self._closing = self._eof = self._choked = False
        self._high, self._low = 65536, 16384
        self._watched = 0
        _prepare(sock)
        self.protocol = protocol
        self._watch(EPOLLIN)
        protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self._sock
        try:
            if name == "peername":
                return self._sock.getpeername()
            if name == "sockname":
                return self._sock.getsockname()
        except OSError:  # the connection has been reset
            return default
        return default

    def is_closing(self) -> bool:
        return self._closing

    # ------------------------------------------------------------------ reading

    def pause_reading(self) -> None:
        self._wanted = False
        if self.reading:
            self.reading = False
            self._watch(self._watched & ~EPOLLIN)

    def resume_reading(self) -> None:
        self._wanted = not self._closing
        if self._undelivered:
            self._reactor.loop.call_soon(self._read_on)
        else:
            self._read_on()

    def _read_on(self) -> None:
        if not self._wanted or self.reading:
            return
        self.reading = True
        self._watch(self._watched | EPOLLIN)
        if self._undelivered:
            data, self._undelivered = self._undelivered, b""
            self._reactor.deliver(self, data)

    def received(self, data: bytes) -> None:
        """Handle end of file, or data that was read before the protocol paused in the same turn."""
        if not self.reading:
            self._undelivered += data
        else:  # end of file; half-open connections are not supported
            self.protocol.eof_received()
            self.close()

    # ------------------------------------------------------------------ writing

    def write(self, data: bytes) -> None:
        if self.out:
            if isinstance(self.out, bytes):
                self.out = bytearray(self.out)  # grows, and shrinks at its front, without a copy
            self.out += data
            if len(self.out) > self._high:
                self._choke()
        elif not self._closing:
            self.out = data
            if not self._dirty:
                self._reactor.expect()
            self._dirty.append(self)

    def writable(self) -> None:
        """The socket is writable: send from `out`."""
        try:
            self.taken(self.send(self.out))
        except BlockingIOError:
            pass
        except OSError as error:
            self.abort(error)

    def taken(self, sent: int) -> None:
        """The socket has accepted `sent` bytes of `out`: update buffer, limits and epoll events."""
        if isinstance(self.out, bytes):
            self.out = self.out[sent:]
        else:
            del self.out[:sent]
        if self._closing and not self.out:
            self.abort()
            return
        self._watch((EPOLLIN if self.reading else 0) | (EPOLLOUT if self.out else 0))
        if self._eof and not self.out:
            self._shut_down()
        if len(self.out) > self._high:
            self._choke()
        elif self._choked and len(self.out) <= self._low:
            self._choked = False
            self.protocol.resume_writing()
        # Last, because resume_writing() may have written and choked again.
        self.plain = not (self._choked or self._closing or (self._eof and self.out))

    def _choke(self) -> None:
        self.plain = False
        if not self._choked:
            self._choked = True
            self.protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 65536 if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return len(self.out)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Half-close the connection after all buffered data is sent."""
        if self._eof or self._closing:
            return
        self._eof = True
        if self.out:
            self.plain = False
        else:
            self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # the connection has been reset
            self.abort(error)

    # ------------------------------------------------------------------ endings

    def close(self) -> None:
        """Stop reading, send the buffered data, then close."""
        if self._closing:
            return
        if not self.out:
            self.abort()
            return
        self.pause_reading()
        self._closing, self.plain = True, False

    def abort(self, error: OSError | None = None) -> None:
        """Close at once, with `error` if given. connection_lost() is called later, from the loop."""
        self.out = self._undelivered = b""
        self.reading, self._wanted, self._closing, self.plain = False, False, True, True
        self._watch(0)
        if self.protocol is not NULL_PROTOCOL:
            self._reactor.loop.call_soon(self._lost, self.protocol, error)
            self.protocol = NULL_PROTOCOL

    def _lost(self, protocol: ConnectionProtocol, error: OSError | None) -> None:
        try:
            protocol.connection_lost(error)
        finally:
            self._sock.close()
            # Break the reference cycle: the garbage collector rarely runs in this process.
            del self.recv, self.send

    def _watch(self, events: int) -> None:
        """Set the epoll events. Without events the socket is removed, because EPOLLHUP would repeat."""
        if events != self._watched:
            self._reactor.watch(self, self._sock.fileno(), self._watched, events)
            self._watched = events


def _prepare(sock: socket.socket) -> None:
    """Disable Nagle's algorithm and, on the loopback, congestion control.

    A default that paces, such as BBR, would set a timer for each response, which costs half a microsecond.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    here = sock.getsockname()[0].removeprefix("::ffff:")
    if here.startswith("127.") or here == "::1":
        with contextlib.suppress(OSError):  # the kernel may not permit it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, PLAIN_CONTROL)
