"""Wait for a condition, or watch that it stays false: the polling loops of all tests.  Touches the clock.

A test that sleeps for a fixed time and then looks is slow on a fast machine and fails on a slow one.
`eventually` goes on as soon as the condition holds; its limit is generous, because only a failure
takes that long.  `never` has to take its whole time, so it is short.

    eventually(log.exists, "the log file")
    await eventually_async(lambda: proxy.connections == 0, "the end of the connection", seconds=5)
    never(lambda: log.read_text(), "a line in the log", seconds=0.3)

`what` names the condition in the failure: a text, or a callable that makes one when it is needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT = 10.0  # seconds
WINDOW = 0.3  # seconds
PAUSE = 0.01  # seconds between two looks


def eventually(
    condition: Callable[[], T],
    what: object = "",
    seconds: float = LIMIT,
    step: Callable[[], object] = lambda: time.sleep(PAUSE),
) -> T:
    """The first true value of `condition`, a `step` between two looks; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        _deny(time.monotonic() > end, lambda: f"not within {seconds:g} s: {_text(what)}")
        step()
    return found


async def eventually_async(condition: Callable[[], T], what: object = "", seconds: float = LIMIT) -> T:
    """`eventually` on a running loop."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        _deny(time.monotonic() > end, lambda: f"not within {seconds:g} s: {_text(what)}")
        await asyncio.sleep(PAUSE)
    return found


def never(condition: Callable[[], object], what: object = "", seconds: float = WINDOW) -> None:
    """AssertionError as soon as `condition` is true, at any look in `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _deny(condition(), what)
        time.sleep(PAUSE)
    _deny(condition(), what)


async def never_async(condition: Callable[[], object], what: object = "", seconds: float = WINDOW) -> None:
    """`never` on a running loop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _deny(condition(), what)
        await asyncio.sleep(PAUSE)
    _deny(condition(), what)


def _deny(found: object, what: object) -> None:
    if found:
        raise AssertionError(_text(what))


def _text(what: object) -> str:
    return str(what() if callable(what) else what)
