"""Where tests of the load balancer play: one that several of them share, or one of their own.

The shared one has its loop in a thread, which runs between tests, too, so that the instance goes on
answering probes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from tests.support.loadbalancer.balancer_process import Balancer, balance
from tests.support.loadbalancer.chaos_proxy import Chaos
from tests.support.loadbalancer.scripted_instance import Origin, Play, echo, served

T = TypeVar("T")


class Stage:
    """`run` plays a coroutine on the loop; `origin` is the only instance of `balancer`."""

    balancer: Balancer
    origin: Origin

    def __init__(self, folder: Path, *options: str) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        try:
            self.run(self._open(folder, options))
        except BaseException:
            self.close()
            raise

    @property
    def port(self) -> int:
        return self.balancer.port

    def run(self, play: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
        return asyncio.run_coroutine_threadsafe(play, self._loop).result(timeout)

    def on(self, play: Play) -> Origin:
        """What the instance does from now on; what it was asked before is forgotten."""
        self.origin.play = play
        self.origin.asked.clear()
        return self.origin

    async def _open(self, folder: Path, options: tuple[str, ...]) -> None:
        self.origin = await Origin(echo).start()
        self._stack.push_async_callback(self.origin.stop)
        self.balancer = await self._stack.enter_async_context(
            balance(folder, *options, instances=[self.origin.url])
        )

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@dataclass
class Scene:
    """Four instances behind a load balancer, the first perhaps by a way that can be spoilt."""

    lb: Balancer
    origins: list[Origin]
    ways: list[Chaos]

    @property
    def url(self) -> str:
        """Of the instance that has the trouble."""
        return self.ways[0].url if self.ways else self.origins[0].url


def act(scenario: Coroutine[Any, Any, None]) -> None:
    """Play it on a loop of its own."""
    uvloop.run(scenario)


@asynccontextmanager
async def scene(
    folder: Path,
    *options: str,
    service: float = 0.01,
    spoilt: bool = False,
    limit: Callable[[], None] | None = None,
) -> AsyncIterator[Scene]:
    """Four instances of two workers each, that take `service` seconds; with `spoilt`, one by a detour."""
    async with AsyncExitStack() as stack:
        origins = [await Origin(served(service)).start() for _ in range(4)]
        for origin in origins:
            stack.push_async_callback(origin.stop)
        ways = [await Chaos(origins[0].port).start()] if spoilt else []
        for way in ways:
            stack.push_async_callback(way.stop)
        urls = [way.url for way in ways] + [origin.url for origin in origins[len(ways) :]]
        lb = await stack.enter_async_context(balance(folder, *options, instances=urls, limit=limit))
        yield Scene(lb, origins, ways)
