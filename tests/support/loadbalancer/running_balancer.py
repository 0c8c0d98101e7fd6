"""A load balancer before scripted instances: one that several tests share, or one for a single test.

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
from tests.support.loadbalancer.chaos_proxy import ChaosProxy
from tests.support.loadbalancer.scripted_instance import Handler, Origin, echo, responding_after

T = TypeVar("T")


class RunningBalancer:
    """`run` awaits a coroutine on the loop; `origin` is the only instance of `balancer`."""

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

    def run(self, scenario: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
        return asyncio.run_coroutine_threadsafe(scenario, self._loop).result(timeout)

    def handle_with(self, handler: Handler) -> Origin:
        """What the instance does from now on; earlier exchanges are forgotten."""
        self.origin.handler = handler
        self.origin.exchanges.clear()
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
class BalancedPool:
    """Four instances behind a load balancer, the first perhaps by a network that can fail."""

    lb: Balancer
    origins: list[Origin]
    chaos: list[ChaosProxy]

    @property
    def url(self) -> str:
        """Of the instance that fails."""
        return self.chaos[0].url if self.chaos else self.origins[0].url


def run_scenario(scenario: Coroutine[Any, Any, None]) -> None:
    """On a loop of its own."""
    uvloop.run(scenario)


@asynccontextmanager
async def balanced_pool(
    folder: Path,
    *options: str,
    service: float = 0.01,
    with_chaos: bool = False,
    limit: Callable[[], None] | None = None,
) -> AsyncIterator[BalancedPool]:
    """Four instances, two workers each, `service` seconds a request; `with_chaos`: one behind ChaosProxy."""
    async with AsyncExitStack() as stack:
        origins = [await Origin(responding_after(service)).start() for _ in range(4)]
        for origin in origins:
            stack.push_async_callback(origin.stop)
        chaos = [await ChaosProxy(origins[0].port).start()] if with_chaos else []
        for proxy in chaos:
            stack.push_async_callback(proxy.stop)
        urls = [proxy.url for proxy in chaos] + [origin.url for origin in origins[len(chaos) :]]
        lb = await stack.enter_async_context(balance(folder, *options, instances=urls, limit=limit))
        yield BalancedPool(lb, origins, chaos)
