"""A connection's socket: what it reads and writes goes through the reactor.

Touches its socket, and the reactor's epoll.  ConnectionProtocol and Transport are asyncio's in all but name:
a compiled class (twofold/native/load.py) has no interpreted one above it.  TLS stays with uvloop, whose
transports a protocol cannot tell from these.

Nothing is sent by write(): the reactor does that at the end of its turn, for all connections.  What a
socket does not take waits here, and the protocol is told beyond `high` bytes of it, as asyncio has it.
"""

from __future__ import annotations

import contextlib
import socket
from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING, Any

from twofold.native.attributes import mypyc_attr

if TYPE_CHECKING:
    from twofold.reactor.reactor import Reactor

PLAIN_CONTROL = b"reno"  # of congestion: every kernel has it, and as a rule lets everybody choose it


@mypyc_attr(allow_interpreted_subclasses=True)  # those of the tests
class ConnectionProtocol:
    """What a connection tells."""

    __slots__ = ()

    def connection_made(self, transport: Any) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def expects(self) -> bool:
        """Whether anybody has asked for what comes."""
        return True


NOBODY = ConnectionProtocol()  # is told what happens after the end


class Transport:
    """`reading`: the protocol wants data, and there is a connection. `out`: bytes that have not been sent.

    `first`: it goes to an instance, and what it reads is told before what clients sent in the same turn; and
    before all else when its protocol expects nothing. Or a request could be given to a connection whose end,
    or rubbish, has been read already.
    """

    __deletable__ = ("recv", "send")
    __slots__ = (
        "_choked", "_closing", "_dirty", "_eof", "_high", "_late", "_low", "_reactor", "_sock",
        "_wanted", "_watched", "first", "out", "plain", "protocol", "reading", "recv", "send",
    )  # fmt: skip

    def __init__(
        self, reactor: Reactor, sock: socket.socket, protocol: ConnectionProtocol, first: bool = False
    ) -> None:
        """Begin to read, for `protocol`; `sock` does not block, and is the transport's now."""
        self._reactor = reactor
        self._dirty = reactor.dirty
        self._sock = sock
        self.recv, self.send = sock.recv, sock.send
        self.reading = True
        self.first = first
        self.out: bytes | bytearray = b""
        self.plain = True  # when all is sent, there is nothing else to do
        self._wanted = True
        self._late = b""  # read in the turn in which the protocol came to want no more
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
        except OSError:  # it has been reset
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
        if self._late:
            self._reactor.loop.call_soon(self._read_on)
        else:
            self._read_on()

    def _read_on(self) -> None:
        if not self._wanted or self.reading:
            return
        self.reading = True
        self._watch(self._watched | EPOLLIN)
        if self._late:
            data, self._late = self._late, b""
            self._reactor.deliver(self, data)

    def received(self, data: bytes) -> None:
        """What is not simply data for a protocol that wants it."""
        if not self.reading:  # since it was read, in this turn
            self._late += data
        else:  # the other side sends no more, and neither of ours goes on alone
            self.protocol.eof_received()
            self.close()

    # ------------------------------------------------------------------ writing

    def write(self, data: bytes) -> None:
        if self.out:
            if isinstance(self.out, bytes):
                self.out = bytearray(self.out)  # which grows, and shrinks at its front, without a copy
            self.out += data
            if len(self.out) > self._high:
                self._choke()
        elif not self._closing:
            self.out = data
            if not self._dirty:
                self._reactor.expect()
            self._dirty.append(self)

    def writable(self) -> None:
        """The socket may take more of what waits."""
        try:
            self.taken(self.send(self.out))
        except BlockingIOError:
            pass
        except OSError as error:
            self.abort(error)

    def taken(self, sent: int) -> None:
        """The socket has taken so much of `out`, perhaps not all."""
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
        # Last, for the protocol may have written, and be held back again.
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
        """Say that no more will be sent, once all has been."""
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
        except OSError as error:  # the other side has gone
            self.abort(error)

    # ------------------------------------------------------------------ endings

    def close(self) -> None:
        """Read no more, send what waits, and end."""
        if self._closing:
            return
        if not self.out:
            self.abort()
            return
        self.pause_reading()
        self._closing, self.plain = True, False

    def abort(self, error: OSError | None = None) -> None:
        """The end, by `error` if given. The protocol hears of it soon, never within a call of its own."""
        self.out = self._late = b""
        self.reading, self._wanted, self._closing, self.plain = False, False, True, True
        self._watch(0)
        if self.protocol is not NOBODY:
            self._reactor.loop.call_soon(self._lost, self.protocol, error)
            self.protocol = NOBODY

    def _lost(self, protocol: ConnectionProtocol, error: OSError | None) -> None:
        try:
            protocol.connection_lost(error)
        finally:
            self._sock.close()
            # No cycle must wait for the collector, which is rare here.
            del self.recv, self.send

    def _watch(self, events: int) -> None:
        """Without any, the socket leaves the epoll: it would tell of a hang-up again and again."""
        if events != self._watched:
            self._reactor.watch(self, self._sock.fileno(), self._watched, events)
            self._watched = events


def _prepare(sock: socket.socket) -> None:
    """Whatever is sent goes at once.

    Within one machine there is no congestion to control.  A system's choice that paces, as BBR does,
    would set a timer with each answer: half a microsecond.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    here = sock.getsockname()[0].removeprefix("::ffff:")
    if here.startswith("127.") or here == "::1":
        with contextlib.suppress(OSError):  # somebody has found a way to forbid it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, PLAIN_CONTROL)
