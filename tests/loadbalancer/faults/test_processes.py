"""The load balancer's own processes die, stop and are replaced under load: what its callers see."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.eventually import eventually_async
from tests.support.instance_process import alive, kill
from tests.support.loadbalancer.balancer_process import Balancer, balance
from tests.support.loadbalancer.certificate_authority import Authority
from tests.support.loadbalancer.http_clients import Answer, Broken, Caller, Load, once, post
from tests.support.loadbalancer.running_balancer import balanced_pool, run_scenario
from tests.support.loadbalancer.scripted_instance import Origin, responding_after
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.supervision.supervisor import RESTARTS

pytestmark = pytest.mark.alone

BACK = 1.5  # seconds until another proxy serves; 0.3 where nothing else runs
QUIET = 100.0  # requests a second


async def again_and_again(lb: Balancer, many: int, bar: float) -> list[float]:
    """Kill the proxy; how long it takes each time until somebody answers on a fresh connection."""
    clock, took = asyncio.get_running_loop().time, []
    for _ in range(many):
        (victim,) = lb.proxies()
        kill(victim)
        began = clock()
        while True:
            try:
                made = await once(lb.port, post(), timeout=5.0)
                break
            except Broken:  # the dying one had accepted it
                continue
        assert made.status == 200
        took.append(clock() - began)
        assert took[-1] <= bar
        await asyncio.sleep(RESTARTS.healthy_s)  # or its death would be taken for one of a row
    return took


def no_connection_was_refused(failures: object) -> bool:
    return "Refused" not in str(failures)


def test_3_a_killed_proxy_is_replaced(tmp_path: Path) -> None:
    """Only what it had in hand is lost; nobody is refused; the bandwidth is what it was."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path, "--bandwidth-mbps", "700") as pool:
            lb = pool.lb
            before = lb.bucket().rate
            async with Load(lb.port, QUIET).going(2.5) as load:
                await asyncio.sleep(0.3)
                await again_and_again(lb, 2, BACK)
            outcome = load.outcome
            assert set(outcome.statuses) <= {200}, outcome.bad()
            assert no_connection_was_refused(outcome.failures), outcome.bad()
            assert outcome.total - outcome.good <= 2 * 12, outcome.bad()
            assert lb.bucket().rate == before == 700_000_000
            await lb.settled()

    run_scenario(scenario())


def test_a_failed_tick_is_reported_and_others_follow(tmp_path: Path) -> None:
    """There would be no timeouts, counters and access log without them."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path, "--head-timeout", "1") as pool:
            lb = pool.lb
            table = shared_memory.endpoint_table(lb.look())
            table.publish({**table.read(), "instances": [{"name": "no instance is described like this"}]})
            await eventually_async(lambda: "bug in the proxy's tick: KeyError" in lb.printed(), lb.printed)
            assert (await once(lb.port, post())).status == 200
            await eventually_async(lambda: lb.total(0) == 1, "it is counted")
            async with Caller(lb.port) as slow:
                slow.send(b"POST /predict HTTP/1.1\r\n")
                assert (await slow.answer()).status == 408

    run_scenario(scenario())


@pytest.mark.soak
def test_3_it_is_back_within_300_ms(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            print([f"{took:.3f}" for took in await again_and_again(pool.lb, 10, 0.3)])

    run_scenario(scenario())


async def asking(port: int, asked: list[Answer]) -> str:
    """Ask until told that the connection closes; what else went wrong."""
    async with Caller(port) as caller:
        while True:
            try:
                asked.append(await caller.ask(post()))
            except (OSError, Broken, TimeoutError) as error:
                return repr(error)
            if asked[-1].closes:
                return ""


def test_20_a_stop_answers_every_request_in_flight(tmp_path: Path) -> None:
    """Everybody is answered, and told that it was the last time."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            asked: list[Answer] = []
            callers = [asyncio.ensure_future(asking(pool.lb.port, asked)) for _ in range(40)]
            await eventually_async(lambda: len(asked) > 200, "answers")
            assert await pool.lb.end(signal.SIGTERM) == 0
            assert set(await asyncio.gather(*callers)) == {""}
            assert {one.status for one in asked} == {200}

    run_scenario(scenario())


async def reloaded(lb: Balancer, times: int, pause: float) -> int:
    """Ask for it so often; the most proxies that were alive."""
    most = 0
    for _ in range(times):
        lb.process.send_signal(signal.SIGHUP)
        until = asyncio.get_running_loop().time() + pause
        while asyncio.get_running_loop().time() < until:
            most = max(most, len(lb.proxies()))
            await asyncio.sleep(0.02)
    return most


def test_21_reloads_under_load(tmp_path: Path) -> None:
    storm(tmp_path, 6, 0.4)


@pytest.mark.soak
def test_21_twenty_reloads_in_ten_seconds(tmp_path: Path) -> None:
    storm(tmp_path, 20, 0.5)


def storm(folder: Path, times: int, pause: float) -> None:
    """Real proxies take over from each other, and no request notices."""

    async def scenario() -> None:
        async with balanced_pool(folder) as pool:
            before = pool.lb.proxies()
            async with Load(pool.lb.port, QUIET).going(times * pause + 1.0) as load:
                most = await reloaded(pool.lb, times, pause)
            assert not load.outcome.bad(), load.outcome.bad()
            assert most <= 2
            await eventually_async(lambda: not any(map(alive, before)), "the first ones have left")
            await eventually_async(lambda: len(pool.lb.proxies()) == 1, "one generation", 10)

    run_scenario(scenario())


# ---------------------------------------------------------------------- TLS

AUTHORITY = Authority()


async def secure(port: int, certificates: set[bytes]) -> int:
    """One request over TLS; its status, and the certificate that was shown."""
    context = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
    caller = Caller(port)
    caller.reader, caller.writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    shown = caller.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    certificates.add(shown)
    try:
        return (await caller.ask(post())).status
    finally:
        caller.writer.transport.abort()


def test_33_a_certificate_is_renewed_while_others_send_garbage(tmp_path: Path) -> None:
    async def scenario() -> None:
        certificate, key = AUTHORITY.issue().write(tmp_path, "server")
        async with balanced_pool(tmp_path, "--tls-certificate", certificate, "--tls-key", key) as pool:
            port, shown = pool.lb.port, set[bytes]()
            assert await secure(port, shown) == 200
            AUTHORITY.issue().write(tmp_path, "server")
            made = set[int]()
            until = asyncio.get_running_loop().time() + 20.0
            while len(shown) < 2 and asyncio.get_running_loop().time() < until:
                async with Caller(port) as rude:
                    rude.send(post() if len(made) % 2 else os.urandom(100))
                    made.add(await secure(port, shown))
                await asyncio.sleep(0.05)
            assert made == {200} and len(shown) == 2
            await pool.lb.settled()

    run_scenario(scenario())


def test_33_tls_on_a_plain_port(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await secure(pool.lb.port, set())
            async with Caller(pool.lb.port) as caller:
                made = await caller.ask(b"\x16\x03\x01\x02\x00\x01\x00" + bytes(300))
                assert made.status == 400 and made.closes
            assert (await once(pool.lb.port, post())).status == 200
            await pool.lb.settled()

    run_scenario(scenario())


# ---------------------------------------------------------------------- nobody reads what it says


def log_writer_of(lb: Balancer) -> int:
    log = str(lb.folder / "logs" / "access.log")
    return next(
        pid
        for pid in lb.children()
        if any(os.path.realpath(fd) == log for fd in Path(f"/proc/{pid}/fd").iterdir())
    )


def narrow_pipes(pid: int) -> None:
    """What it reads from holds a page and no more, so that little traffic fills it."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(entry).startswith("pipe:"):
            pipe = os.open(entry, os.O_RDONLY | os.O_NONBLOCK)
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
            os.close(pipe)


def logged(lb: Balancer, request_id: str) -> bool:
    return any(line["data"]["opcRequestId"] == request_id for line in lb.access())


def test_34_the_log_writer_hangs(tmp_path: Path) -> None:
    """Requests are served, and no line is lost that is not counted; what follows is written again."""

    async def scenario() -> None:
        async with balanced_pool(tmp_path) as pool:
            lb = pool.lb
            log_writer = log_writer_of(lb)
            narrow_pipes(log_writer)
            os.kill(log_writer, signal.SIGSTOP)
            try:
                load = Load(lb.port, 200.0)
                await load.run(1.5)
                assert not lb.access()
            finally:
                os.kill(log_writer, signal.SIGCONT)
            assert not load.outcome.bad()
            assert load.outcome.quantile(0.5) <= 0.1
            made = await once(lb.port, post(), timeout=20)
            await eventually_async(lambda: logged(lb, made.fields["opc-request-id"]), "lines again")
            assert made.status == 200
            await eventually_async(
                lambda: len(lb.access()) + lb.total(shared_memory.ACCESS_DROPPED) == load.outcome.total + 1,
                lambda: f"{len(lb.access())} written, {lb.total(shared_memory.ACCESS_DROPPED)} dropped",
            )
            await lb.settled()

    run_scenario(scenario())


def silence(pipe: int) -> None:
    for fd in (1, 2):
        os.dup2(pipe, fd)


def test_34_stderr_is_full_and_nothing_reads_it(tmp_path: Path) -> None:
    """Its stderr is a pipe that is full, and there is much to complain of."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 65536)
    os.set_blocking(writing, True)

    async def scenario(silent: Callable[[], None]) -> None:
        origins = [await Origin(responding_after(0.01)).start() for _ in range(2)]
        async with balance(tmp_path, instances=[one.url for one in origins], wait=False, limit=silent) as lb:
            await eventually_async(lb.proxies, "a proxy", 20)
            await eventually_async(lambda: lb.state(origins[0].url) == "up", "an instance", 20)
            async with Load(lb.port, 50.0).going(2.0) as load:
                await asyncio.sleep(0.3)
                origins[1].kill()
                lb.process.send_signal(signal.SIGHUP)
            assert load.outcome.good >= load.outcome.total - 4, load.outcome.bad()
            assert await lb.end() == 0
        for one in origins:
            await one.stop()

    try:
        run_scenario(scenario(lambda: silence(writing)))
    finally:
        os.close(reading)
        os.close(writing)


def test_34_a_metrics_reader_that_does_not_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            status = probe.getsockname()[1]
        async with balanced_pool(tmp_path, "--status", f"127.0.0.1:{status}") as pool:
            # The streams stop reading when their buffers are full.
            readers = [await Caller(status).__aenter__() for _ in range(5)]
            for reader in readers:
                reader.send(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n" * 200)
            async with Load(pool.lb.port, QUIET).going(1.5) as load:
                await asyncio.sleep(0)
            assert not load.outcome.bad() and load.outcome.quantile(0.5) <= 0.1
            assert (await once(status, b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")).status == 200
            for reader in readers:
                reader.writer.transport.abort()
            await pool.lb.settled()

    run_scenario(scenario())
