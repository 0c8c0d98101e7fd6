"""What every child that serves requests does alike: limits, garbage collector, stop signal, tick.

Touches the limits and the collector of this process, and the signals of its event loop.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from collections.abc import Callable

# New objects before a collection. A journal alone holds thousands of tuples from one tick to the next.
GC_THRESHOLD = 20000


def raise_descriptor_limit() -> None:
    """Allow as many open descriptors as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def settle_garbage_collector() -> None:
    """Call it before the first request: what was imported never becomes garbage, and a scan takes 10 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 10, 100)


def stop_event(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """An event that SIGTERM sets."""
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    return stopping


async def tick_forever(pause_s: float, tick: Callable[[], None], say: Callable[[str], None]) -> None:
    """Call `tick` after every pause, until cancelled.

    A tick that raises is told to `say`, and followed by the next tick: without ticks there would be no
    deadlines, logs, counts or timeouts.
    """
    while True:
        await asyncio.sleep(pause_s)
        try:
            tick()
        except Exception as error:
            say(f"{type(error).__name__}: {error}")
