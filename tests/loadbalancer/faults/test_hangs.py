"""Processes of a load balancer that hang: SIGSTOP, the hardest kind, to each of them, and to all at once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.loadbalancer.faults.test_processes import log_writer_of
from tests.support.eventually import eventually_async, never_async
from tests.support.loadbalancer.balancer_process import Balancer
from tests.support.loadbalancer.http_clients import once, post
from tests.support.loadbalancer.running_balancer import balanced_pool, run_scenario
from twofold.loadbalancer import shared_memory

BACK_S = 8.0  # from the stop to service as before
ROOM_S = 8.0  # for a machine that is busy
ALL_STOPPED_S = 6.0  # longer than the watchdog's patience


def victim(lb: Balancer, role: str) -> int:
    if role == "proxy":
        return lb.proxies()[0]
    if role == "log writer":
        return log_writer_of(lb)
    (controller,) = lb.children() - {*lb.proxies(), log_writer_of(lb)}
    return controller


@pytest.mark.parametrize("role", ["proxy", "controller", "log writer"])
def test_a_stopped_child_is_replaced(tmp_path: Path, role: str) -> None:
    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            lb = pool.lb
            assert (await once(lb.port, post())).status == 200
            stopped = victim(lb, role)
            os.kill(stopped, signal.SIGSTOP)
            began = time.monotonic()
            await eventually_async(
                lambda: f"{role} " in lb.printed() and "hangs" in lb.printed(), "noticed", BACK_S
            )
            await eventually_async(lambda: stopped not in lb.children(), "ended", BACK_S + ROOM_S)
            await eventually_async(lambda: "and is replaced" in lb.printed(), "replaced", BACK_S + ROOM_S)
            answered = await asyncio.wait_for(once(lb.port, post()), BACK_S + ROOM_S)
            assert answered.status == 200
            assert time.monotonic() - began < BACK_S + ROOM_S
            assert shared_memory.hung(lb.look()) == 1

    run_scenario(scenario())


def test_a_stall_of_the_whole_machine_ends_no_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            lb = pool.lb
            assert (await once(lb.port, post())).status == 200
            processes = {lb.process.pid, *lb.children()}
            for pid in processes:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(ALL_STOPPED_S)
            for pid in processes:
                os.kill(pid, signal.SIGCONT)
            assert (await once(lb.port, post())).status == 200
            await never_async(lambda: processes != {lb.process.pid, *lb.children()}, "an end", 1.0)
            assert "hangs" not in lb.printed() and not shared_memory.hung(lb.look())

    run_scenario(scenario())
