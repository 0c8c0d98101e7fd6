"""Process setup shared by all children that serve requests: limits, garbage collector, stop signal, tick.

Touches the limits and the collector of this process, and the signals of its event loop.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from collections.abc import Callable

# New objects before a collection.  A journal alone allocates thousands of tuples in one tick.
GC_THRESHOLD = 20000


def raise_descriptor_limit() -> None:
    """Raise the limit of open descriptors to the hard limit. Raises OSError."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def settle_garbage_collector() -> None:
    """Exclude all present objects from collections, of which each scan takes 10 ms.

    Call it before the first request: imported modules never become garbage.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 10, 100)


def stop_event(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """An event that is set on SIGTERM."""
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    return stopping


async def tick_forever(pause_s: float, tick: Callable[[], None], say: Callable[[str], None]) -> None:
    """Call `tick` after every pause of `pause_s`, until cancelled.

    An exception of `tick` is passed to `say` as text, and the next tick follows: deadlines, logs, counts and
    timeouts depend on ticks.
    """
    while True:
        await asyncio.sleep(pause_s)
        try:
            tick()
        except Exception as error:
            say(f"{type(error).__name__}: {error}")
