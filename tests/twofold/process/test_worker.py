"""What children that serve have in common: the tick, the stop signal, the limits."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys

from twofold.process import worker


def test_a_tick_that_fails_is_told_and_followed_by_the_next() -> None:
    ticks: list[int] = []
    told: list[str] = []

    def tick() -> None:
        ticks.append(len(ticks))
        if len(ticks) == 2:
            raise KeyError("cell")

    async def scenario() -> None:
        ticking = asyncio.create_task(worker.tick_forever(0.001, tick, told.append))
        while len(ticks) < 4:
            await asyncio.sleep(0)
        assert not ticking.done()
        ticking.cancel()
        await asyncio.wait([ticking])
        assert ticking.cancelled()

    asyncio.run(scenario())
    assert told == ["KeyError: 'cell'"]


def test_sigterm_sets_the_stop_event() -> None:
    async def scenario() -> None:
        stopping = worker.stop_event(asyncio.get_running_loop())
        assert not stopping.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stopping.wait(), 5)

    asyncio.run(scenario())


def test_limits_and_collector() -> None:
    """In a process of its own, which keeps them."""
    program = (
        "import gc, resource; from twofold.process import worker\n"
        "worker.raise_descriptor_limit(); worker.settle_garbage_collector()\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE), gc.get_freeze_count() > 0, gc.get_threshold()[0])"
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [str(hard), str(hard), "True", str(worker.GC_THRESHOLD)]
