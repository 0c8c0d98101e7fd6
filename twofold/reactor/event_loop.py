"""The event loop of a proxy without TLS: asyncio's, which waits in the epoll of the reactor.

Touches that epoll.  Every other loop could only watch the reactor's epoll as one more descriptor: then
each time that something comes, one epoll wakes up the other, the loop wakes up the reactor, and that
asks once more in vain before the loop may wait again.  Between few requests that is a tenth of what
one costs (docs/design.md, section 4).  Here whoever waits is called with what happened, and asyncio
hears of it only when there is something for it: an event of another descriptor, a timer, a callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import selectors
from collections.abc import Callable, Mapping
from contextvars import Context
from math import inf
from select import EPOLLIN, EPOLLOUT
from time import monotonic
from typing import Any, TypeVarTuple

MOST_EVENTS = 64  # taken at once: the longest that a timer waits for their turn is 2 ms or so

Events = list[tuple[int, int]]  # descriptor, mask of epoll
Ts = TypeVarTuple("Ts")


def _nobodys(happened: Events) -> Events:
    return happened


class Waiter(selectors.BaseSelector):
    """`turn` is given what happened, serves what it knows, and returns the rest, which is asyncio's.

    `asked`: asyncio has been asked for something since it began to wait.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.turn: Callable[[Events], Events] = _nobodys
        self.asked = False
        self._keys: dict[int, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.asked = False
        poll, turn = self.epoll.poll, self.turn
        until = inf if timeout is None else monotonic() + timeout
        while happened := poll(timeout, MOST_EVENTS):
            others = turn(happened)
            if others:
                return self._told(others)
            if self.asked:
                break
            if timeout is not None:
                timeout = until - monotonic()
                if timeout <= 0:
                    break
        return []

    def _told(self, happened: Events) -> list[tuple[selectors.SelectorKey, int]]:
        """In asyncio's words; an error or a hang-up is for whoever reads or writes to find."""
        told = []
        for fd, mask in happened:
            key = self._keys.get(fd)
            if key is not None:
                reads = selectors.EVENT_READ if mask & ~EPOLLOUT else 0
                writes = selectors.EVENT_WRITE if mask & ~EPOLLIN else 0
                told.append((key, (reads | writes) & key.events))
        return told

    # ------------------------------------------------------------------ asyncio's descriptors

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = _number(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} is already registered")
        self.epoll.register(fd, _mask(events))
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = _number(fileobj)
        if self._keys[fd].events != events:
            self.epoll.modify(fd, _mask(events))
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self._keys.pop(_number(fileobj))
        with contextlib.suppress(OSError):  # it has been closed, and has left the epoll by that
            self.epoll.unregister(key.fd)
        return key

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[_number(fileobj)]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def close(self) -> None:
        self.epoll.close()
        self._keys.clear()


def _number(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


def _mask(events: int) -> int:
    reads = EPOLLIN if events & selectors.EVENT_READ else 0
    return reads | (EPOLLOUT if events & selectors.EVENT_WRITE else 0)


class EventLoop(asyncio.SelectorEventLoop):
    """`waiter.turn` is for a reactor to set."""

    def __init__(self) -> None:
        self.waiter = Waiter()
        super().__init__(self.waiter)

    def stop(self) -> None:
        self.waiter.asked = True
        super().stop()

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        self.waiter.asked = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """call_later() comes by here, too."""
        self.waiter.asked = True
        return super().call_at(when, callback, *args, context=context)
