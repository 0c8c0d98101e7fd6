"""A load balancer that several tests share, with a scripted instance behind it, on a loop in a thread.

The loop runs between tests, too, so that the instance goes on answering probes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from balancer import Balancer, balance
from origin import Origin, Play, echo

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
