"""`twofold balance-ctl` as an operator uses it: the real command beside a real load balancer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually, eventually_async, never_async
from tests.support.instance_process import alive
from tests.support.loadbalancer.balancer_process import ROOT, Balancer, balance
from tests.support.loadbalancer.http_clients import once, post
from tests.support.loadbalancer.running_balancer import run_scenario
from tests.support.loadbalancer.scripted_instance import Exchange, Origin, answer, echo
from twofold.errors import ExitCode
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.cli.balance_ctl import AdminClient

Scenario = Callable[[Balancer, list[Origin]], Coroutine[Any, Any, None]]


async def ctl(lb: Balancer, *arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)"""
    command = [sys.executable, "-m", "twofold", "balance-ctl", *arguments]
    socket_path = str(lb.folder / "admin.sock")
    environment = os.environ | {"TWOFOLD_BALANCE_ADMIN_SOCKET": socket_path}
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30
    )
    return done.returncode, done.stdout, done.stderr


async def told(lb: Balancer, *arguments: str) -> str:
    """What it prints when all is well."""
    code, out, err = await ctl(lb, *arguments)
    assert (code, err) == (0, ""), (code, out, err)
    return out


def before_two_instances(folder: Path, scenario: Scenario, *options: str, named: int = 2) -> None:
    """A load balancer; the first `named` of two instances are in its pool from the start."""

    async def whole() -> None:
        async with AsyncExitStack() as stack:
            origins = [await Origin(echo).start() for _ in range(2)]
            for origin in origins:
                stack.push_async_callback(origin.stop)
            urls = [origin.url for origin in origins[:named]]
            lb = await stack.enter_async_context(balance(folder, *options, instances=urls))
            for url in urls:
                await eventually_async(lambda url=url: lb.state(url) == "up", f"{url} up")  # type: ignore[misc]
            await scenario(lb, origins)

    run_scenario(whole())


def test_the_state_counts_unauthorised_connections(tmp_path: Path) -> None:
    async def scenario(lb: Balancer, origins: list[Origin]) -> None:
        assert "refused: none" in await told(lb, "state")
        for _ in range(3):
            with pytest.raises(OSError):
                await asyncio.wait_for(knock(lb.port), 5)
        await eventually_async(lambda: lb.total(shared_memory.UNAUTHORISED) == 3, "three of them")
        state = AdminClient(str(lb.folder / "admin.sock")).state
        await asyncio.to_thread(
            eventually, lambda: state()["requests"]["unauthorised"] == 3, "what the controller sees"
        )
        assert "3 unauthorised" in await told(lb, "state")

    async def knock(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            if not await reader.read():
                raise ConnectionResetError
        finally:
            writer.close()

    before_two_instances(tmp_path, scenario, "--allow", "10.0.0.0/8")


def test_the_state_in_words_and_as_json(tmp_path: Path) -> None:
    async def scenario(lb: Balancer, origins: list[Origin]) -> None:
        for _ in range(10):
            assert (await once(lb.port, post())).status == 200
        out = await told(lb, "state")
        assert "bandwidth is 25 Mbps" in out
        assert all(f"{origin.url} " in out for origin in origins)
        found = json.loads(await told(lb, "state", "--json"))
        assert [one["state"] for one in found["instances"]] == ["up", "up"]
        assert found["bandwidth"]["mbps"] == 25

    before_two_instances(tmp_path, scenario, "--bandwidth-mbps", "25")


def test_the_bandwidth_is_set(tmp_path: Path) -> None:
    async def scenario(lb: Balancer, origins: list[Origin]) -> None:
        assert await told(lb, "bandwidth", "12.5") == "bandwidth is 12.5 Mbps\n"
        assert json.loads(await told(lb, "state", "--json"))["bandwidth"]["mbps"] == 12.5
        raised = await told(lb, "bandwidth", "10", "--maximum", "20")
        assert raised == "bandwidth is 10 Mbps, up to 20 under load\n"
        code, out, err = await ctl(lb, "bandwidth", "10", "--maximum", "30")
        assert code == ExitCode.USAGE and not out and "at most 20" in err
        assert await told(lb, "bandwidth", "0") == "bandwidth is unlimited\n"

    before_two_instances(tmp_path, scenario)


def test_an_instance_is_added_drained_and_removed(tmp_path: Path) -> None:
    """The drain waits for what is in hand, which is answered; what comes meanwhile goes to others."""

    async def scenario(lb: Balancer, origins: list[Origin]) -> None:
        first, second = origins
        release = asyncio.Event()

        async def held(exchange: Exchange) -> None:
            await release.wait()
            exchange.send(answer(await exchange.whole()))

        first.handler = held
        asked = asyncio.ensure_future(once(lb.port, post(b"[7]")))
        await eventually_async(lambda: first.exchanges, "the request")
        added = await told(lb, "add", second.url.removeprefix("http://"))
        assert second.url in added and "once a probe finds it well" in added
        await eventually_async(lambda: lb.state(second.url) == "up", "the second one up")
        assert await told(lb, "drain", first.url) == f"{first.url} drains, 1 in hand\n"
        for _ in range(5):
            assert (await once(lb.port, post())).status == 200
        assert len(first.exchanges) == 1
        code, _, err = await ctl(lb, "drain", first.url, "--wait", "0.5")
        assert code == ExitCode.INTERNAL and f"{first.url} has not finished within 0.5 s" in err
        leaving = asyncio.ensure_future(told(lb, "remove", first.url, "--wait", "10"))
        await never_async(leaving.done, "its end while it has a request")
        release.set()
        assert (await asked).body == b"[7]"
        assert await leaving == f"{first.url} has left; it may be stopped\n"
        code, _, err = await ctl(lb, "drain", "http://127.0.0.1:1")
        assert code == ExitCode.USAGE and "http://127.0.0.1:1" in err

    before_two_instances(tmp_path, scenario, named=1)


def test_a_reload_is_done_or_says_why_not(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("queue_size: 100\n")

    async def scenario(lb: Balancer, origins: list[Origin]) -> None:
        before = lb.children()
        assert await told(lb, "reload") == "reloaded\n"
        await eventually_async(lambda: not any(map(alive, before)), "the first generation has left", 10)
        assert (await once(lb.port, post())).status == 200
        settings.write_text("queue_size: 100\nqueue_sise: 3\n")
        now = lb.children()
        code, out, err = await ctl(lb, "reload")
        assert (code, out) == (ExitCode.CONFIG, "")
        assert f"not reloaded, and nothing has changed: {settings}:2: there is no setting 'queue_sise'" in err
        assert lb.children() == now

    before_two_instances(tmp_path, scenario, "--config", str(settings))


def test_a_command_waits_for_the_successor_of_a_killed_controller(tmp_path: Path) -> None:
    """Between two of them nobody answers for a moment."""

    async def scenario(lb: Balancer, origins: list[Origin]) -> None:
        serving = set(lb.proxies())
        await told(lb, "state")
        others = lb.children() - serving  # controller and log writer
        for pid in others:
            os.kill(pid, signal.SIGKILL)
        await eventually_async(lambda: not any(map(alive, others)), "their end")
        found = await asyncio.to_thread(AdminClient(str(lb.folder / "admin.sock")).state)
        assert [one["name"] for one in found["instances"]] == [origin.url for origin in origins]
        assert set(lb.proxies()) == serving

    before_two_instances(tmp_path, scenario)


@pytest.mark.parametrize("listening", [False, True])
def test_without_a_load_balancer_the_error_names_a_remedy(tmp_path: Path, listening: bool) -> None:
    """No socket, or one that a dead one has left."""
    path = tmp_path / "admin.sock"
    if listening:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    done = subprocess.run(
        [sys.executable, "-m", "twofold", "balance-ctl", "state", "--socket", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == ExitCode.ADDRESS and not done.stdout
    assert f"no load balancer answers at {path}: " in done.stderr
    assert "start one with `twofold balance`" in done.stderr and "Traceback" not in done.stderr


class Terminal:
    """A terminal 200 columns wide; `text` is what it shows."""

    def __init__(self) -> None:
        self._screen, self.stdout = os.openpty()
        os.set_blocking(self._screen, False)
        self._shown = b""

    def text(self) -> str:
        with suppress(BlockingIOError):
            self._shown += os.read(self._screen, 1 << 16)
        return self._shown.decode(errors="replace")

    def close(self) -> None:
        os.close(self._screen)
        os.close(self.stdout)


def test_a_watch_is_ended_by_ctrl_c_without_an_error_message(tmp_path: Path) -> None:
    async def scenario(lb: Balancer, origins: list[Origin]) -> None:
        path = str(lb.folder / "admin.sock")
        command = [sys.executable, "-m", "twofold", "balance-ctl", "watch", "--socket", path]
        terminal = Terminal()
        watching = subprocess.Popen(
            command, cwd=ROOT, stdout=terminal.stdout, stderr=terminal.stdout,
            env=os.environ | {"COLUMNS": "200", "TERM": "xterm"},
        )  # fmt: skip
        try:
            await eventually_async(lambda: origins[0].url in terminal.text(), terminal.text, 30)
            assert watching.poll() is None
            watching.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(watching.wait, 10) == ExitCode.OK
            assert "Traceback" not in terminal.text() and "interrupted" not in terminal.text()
        finally:
            watching.kill()
            terminal.close()

    before_two_instances(tmp_path, scenario)
