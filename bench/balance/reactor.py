"""An event loop of a page: epoll, and a wait that ends on the microsecond.  Standard library only.

epoll itself waits for whole milliseconds, which is too coarse for requests that are to be sent at
given times; select() waits for microseconds, and can wait for an epoll.
"""

from __future__ import annotations

import gc
import select
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
LONGEST_NS = 100_000_000


class Reactor:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready = [self._epoll.fileno()]
        self._handlers: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        """`handler(events)` whenever there is something to read."""
        self._handlers[fd] = handler
        self._epoll.register(fd, READ)

    def want(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Before it is closed."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def turn(self, until_ns: int) -> None:
        """Handle what is ready, or return at the latest at this monotonic time."""
        wait = min(until_ns - monotonic_ns(), LONGEST_NS)
        if wait > 0:
            select.select(self._ready, (), (), wait / 1e9)
        for fd, events in self._epoll.poll(0):
            handler = self._handlers.get(fd)
            if handler is not None:  # forgotten by a handler of the same turn
                handler(events)


def be_exact() -> None:
    """For a process that measures: no collections in between, and no rounding of its sleeps."""
    gc.disable()
    try:
        Path("/proc/self/timerslack_ns").write_text("1")
    except OSError:
        pass  # the kernel then rounds a sleep by 50 us; the generator reports its lateness anyway
