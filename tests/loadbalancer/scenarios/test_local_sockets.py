"""An instance on this machine is asked over its Unix socket, and over its port where that fails."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from pathlib import Path

import pytest

from tests.support.eventually import eventually_async
from tests.support.instance_process import serve
from tests.support.loadbalancer.balancer_process import balance
from tests.support.loadbalancer.http_clients import once, post
from tests.support.loadbalancer.running_balancer import run_scenario
from tests.support.loadbalancer.scripted_instance import Connection, Origin, echo

EXAMPLES = Path(__file__).parents[3] / "examples"


def used(name: str) -> int:
    """Connections that have been accepted at this abstract socket."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {name}") and line.split()[5] == "03" for line in lines)


def test_a_real_instance_and_the_next_one_at_its_port(tmp_path: Path) -> None:
    async def scenario() -> None:
        with serve(EXAMPLES / "echo", tmp_path / "first") as first:
            port, name = first.port, first.health()["socket"]
            async with balance(tmp_path / "lb", instances=[first.url]) as lb:
                assert (await once(lb.port, post(b"[[1, 2]]"))).body == b'{"rows":1}'
                assert used(name)
                assert first.stop(signal.SIGTERM) == 0
                with serve(EXAMPLES / "echo", tmp_path / "second", "--port", str(port), wait=False) as second:
                    await eventually_async(lambda: first.url in second.printed(), "the second instance", 15)
                    # Nobody has heard yet of the new socket: the port is asked, or the probe was quicker.
                    for _ in range(5):
                        assert (await once(lb.port, post(b"[[1, 2]]"))).status == 200

    run_scenario(scenario())


@pytest.mark.parametrize(("options", "over"), [((), "socket"), (("--no-unix",), "port")])
@pytest.mark.parametrize("listens", [True, False])
def test_the_unix_socket_is_used_where_it_listens_and_tcp_otherwise(
    tmp_path: Path, options: tuple[str, ...], over: str, listens: bool
) -> None:
    async def scenario() -> None:
        origin = await Origin(echo).start()
        origin.unix_socket = f"@twofold-0-{secrets.token_hex(8)}"
        came = 0

        def local() -> Connection:
            nonlocal came
            came += 1
            return Connection(origin)

        try:
            async with balance(tmp_path, *options, instances=[origin.url]) as lb:
                server = None
                if listens:
                    server = await asyncio.get_running_loop().create_unix_server(
                        local, "\0" + origin.unix_socket[1:]
                    )
                for _ in range(3):
                    assert (await once(lb.port, post(b"[3]"))).body == b"[3]"
                assert bool(came) == (listens and over == "socket")
                await lb.settled()
                if server is not None:
                    server.close()
        finally:
            await origin.stop()

    run_scenario(scenario())


def test_addresses_are_connected_to_without_a_thread(tmp_path: Path) -> None:
    """Beside one thread, even an idle one, every malloc() of the proxy would take a lock."""

    async def scenario() -> None:
        origin = await Origin(echo).start()
        try:
            async with balance(tmp_path, "--no-unix", instances=[origin.url]) as lb:
                assert (await once(lb.port, post(b"[3]"))).body == b"[3]"
                for pid in lb.proxies():
                    assert len(os.listdir(f"/proc/{pid}/task")) == 1
        finally:
            await origin.stop()

    run_scenario(scenario())
