"""The live page in a real browser: it shows the pool, and what changes while one looks at it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.instance_process import free_port
from tests.support.loadbalancer.balancer_process import Balancer, balance
from tests.support.loadbalancer.chromium import PROGRAM, Browser
from tests.support.loadbalancer.http_clients import once, post
from tests.support.loadbalancer.running_balancer import run_scenario
from tests.support.loadbalancer.scripted_instance import Origin, echo

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="needs Chromium: scripts/debian, or apt-get install chromium"
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    made = Browser(tmp_path / "profile")
    try:
        yield made
    finally:
        made.close()


async def look(browser: Browser, lb: Balancer, status: int, origin: Origin) -> None:
    """In a thread, for the instance must go on meanwhile."""
    here = asyncio.to_thread
    await here(browser.open, f"http://127.0.0.1:{status}/")
    await here(browser.wait, "document.getElementById('live')?.textContent.includes('live')")
    assert origin.url.removeprefix("http://") in await here(browser.text)
    rows = "document.querySelectorAll('#pool tr').length"
    assert await here(browser.evaluate, rows) == 1
    before = await here(browser.evaluate, "document.getElementById('summary').textContent")
    for _ in range(50):
        assert (await once(lb.port, post(b"[3]"))).status == 200
    moved = f"document.getElementById('summary').textContent !== {before!r}"
    await here(browser.wait, moved)
    second = await Origin(echo).start()
    try:
        lb.name([origin.url, second.url])  # joins while one looks
        await here(browser.wait, f"{rows} === 2")
        picture = await here(browser.picture)
        assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    finally:
        await second.stop()
    await here(browser.wait, "document.getElementById('pool').textContent.includes('down')")
    assert not browser.exceptions


def test_the_page_follows_the_pool(tmp_path: Path, browser: Browser) -> None:
    async def scenario() -> None:
        origin, status = await Origin(echo).start(), free_port()
        options = ("--status", f"127.0.0.1:{status}", "--bandwidth-mbps", "10")
        try:
            async with balance(tmp_path / "lb", *options, instances=[origin.url]) as lb:
                await look(browser, lb, status, origin)
        finally:
            await origin.stop()

    run_scenario(scenario())
