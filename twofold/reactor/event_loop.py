"""The event loop of a proxy without TLS: asyncio's loop on the epoll of the reactor.

Touches that epoll.  Another loop would watch the reactor's epoll as one descriptor: each event would wake one
epoll through the other, and the reactor would poll once more without a result.  At low load that is a tenth
of the cost of a request (docs/design.md, section 4).  Here the selector passes events to the reactor
directly, and returns to asyncio only for an event of another descriptor, a timer, or a callback.
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

MOST_EVENTS = 64  # per poll, so that a timer is delayed by about 2 ms at most

Events = list[tuple[int, int]]  # descriptor, mask of epoll
Ts = TypeVarTuple("Ts")


def _serve_none(events: Events) -> Events:
    return events


class Waiter(selectors.BaseSelector):
    """A selector. `turn`: serves the events of its own descriptors, and returns the others, for asyncio.

    `asked`: a callback or timer was added since select() began, so select() must return.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.turn: Callable[[Events], Events] = _serve_none
        self.asked = False
        self._keys: dict[int, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.asked = False
        poll, turn = self.epoll.poll, self.turn
        until = inf if timeout is None else monotonic() + timeout
        while happened := poll(timeout, MOST_EVENTS):
            others = turn(happened)
            if others:
                return self._translated(others)
            if self.asked:
                break
            if timeout is not None:
                timeout = until - monotonic()
                if timeout <= 0:
                    break
        return []

    def _translated(self, happened: Events) -> list[tuple[selectors.SelectorKey, int]]:
        """epoll events as asyncio's; errors and hang-ups become readable and writable."""
        translated = []
        for fd, mask in happened:
            key = self._keys.get(fd)
            if key is not None:
                reads = selectors.EVENT_READ if mask & ~EPOLLOUT else 0
                writes = selectors.EVENT_WRITE if mask & ~EPOLLIN else 0
                translated.append((key, (reads | writes) & key.events))
        return translated

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
        with contextlib.suppress(OSError):  # a closed descriptor has been removed from the epoll
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
    """An asyncio loop; a Reactor sets `waiter.turn`."""

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
        """Also called by call_later()."""
        self.waiter.asked = True
        return super().call_at(when, callback, *args, context=context)
