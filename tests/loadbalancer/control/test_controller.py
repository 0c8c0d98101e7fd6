"""The controller as a process: what it publishes, and that nothing is lost when it is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.eventually import eventually, never
from tests.support.loadbalancer.controller_process import ControllerProcess, FakeProxy, running_controller
from tests.support.loadbalancer.scripted_instance import Origin, echo
from twofold.loadbalancer import shared_memory


class Instances:
    """Instances that answer probes, on a loop of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._made: list[Origin] = []

    def make(self, workers: int = 2) -> Origin:
        origin = asyncio.run_coroutine_threadsafe(Origin(echo, workers).start(), self._loop).result(5)
        self._made.append(origin)
        return origin

    def kill(self, origin: Origin) -> None:
        self._loop.call_soon_threadsafe(origin.kill)

    def revive(self, origin: Origin) -> None:
        asyncio.run_coroutine_threadsafe(origin.start(), self._loop).result(5)

    def close(self) -> None:
        for origin in self._made:
            asyncio.run_coroutine_threadsafe(origin.stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def instances() -> Iterator[Instances]:
    made = Instances()
    yield made
    made.close()


def test_the_first_table_knows_who_is_well(tmp_path: Path, instances: Instances) -> None:
    good, dead = instances.make(workers=3), instances.make()
    instances.kill(dead)
    with running_controller(tmp_path, upstream=[good.url, dead.url], bandwidth_mbps="12") as controller:
        entries = controller.entries()
        assert entries[good.url]["state"] == "up" and entries[good.url]["workers"] == 3
        assert entries[good.url]["since_ns"] == 0, "no slow start at the beginning of the pool"
        assert entries[dead.url]["state"] == "down"
        assert shared_memory.endpoint_table(controller.shared).read()["limits"]["mbps"] == 12
        assert controller.state()["bandwidth"]["mbps"] == 12
        assert controller.end() == 0
        assert not controller.socket.exists()


def test_an_instance_goes_down_and_returns_with_a_slow_start(tmp_path: Path, instances: Instances) -> None:
    one, other = instances.make(), instances.make()
    with running_controller(tmp_path, upstream=[one.url, other.url]) as controller:
        began = time.monotonic_ns()
        instances.kill(one)
        eventually(lambda: controller.states()[one.url] == "down", "it is down")
        assert controller.states()[other.url] == "up"
        instances.revive(one)
        eventually(lambda: controller.states()[one.url] == "up", "it is up again")
        assert controller.entries()[one.url]["since_ns"] > began
        assert controller.said(f"{one.url} is down: refuses connections") and controller.said(
            f"{one.url} is up"
        )


def test_a_watched_file(tmp_path: Path, instances: Instances) -> None:
    one, other = instances.make(), instances.make()
    file = tmp_path / "pool"
    file.write_text(one.url)
    with running_controller(tmp_path, upstream_file=str(file)) as controller:
        assert controller.states() == {one.url: "up"}
        file.write_text(f"- {one.url}\n- {other.url}\n")
        eventually(lambda: controller.states() == {one.url: "up", other.url: "up"}, "both")
        file.write_text(f"{other.url}\nrubbish\n")
        eventually(lambda: controller.said(f"{file}:2: 'rubbish' is no instance"), "the complaint")
        assert set(controller.states()) == {one.url, other.url}
        proxy = FakeProxy(controller.shared)
        proxy.instance(controller.entries()[one.url]["cell"], {shared_memory.OUTSTANDING: 1})
        file.write_text(other.url)
        eventually(lambda: controller.states().get(one.url) == "drain", "it drains")
        never(lambda: one.url not in controller.states(), "its end while it has a request", 0.4)
        proxy.instance(controller.entries()[one.url]["cell"], {shared_memory.OUTSTANDING: 0})
        eventually(lambda: controller.states() == {other.url: "up"}, "it has left")


def test_a_name_of_dns(tmp_path: Path, instances: Instances) -> None:
    one = instances.make()
    names = ["dns+http://localhost:" + str(one.port), "dns+http://nobody.invalid:1"]
    with running_controller(tmp_path, upstream=names, resolve_interval="0.1") as controller:
        eventually(lambda: controller.states() == {one.url: "up"}, "the address of localhost")
        assert controller.entries()[one.url]["origin"] == names[0]
        assert controller.said(f"{names[1]}: ")


def test_the_successor_of_a_killed_controller_has_its_state(tmp_path: Path, instances: Instances) -> None:
    named, added, removed, drained = (instances.make() for _ in range(4))
    file = tmp_path / "pool"
    file.write_text(f"{named.url}\n{removed.url}\n{drained.url}\n")
    with running_controller(tmp_path, upstream_file=str(file), bandwidth_mbps="10") as controller:
        assert controller.call("PUT", "/bandwidth", {"mbps": 33})[0] == 200
        assert controller.call("POST", "/instances", {"url": added.url})[0] == 201
        assert controller.call("DELETE", f"/instances/{removed.url}")[0] == 202
        assert controller.call("POST", f"/instances/{drained.url}/drain")[0] == 202
        expected = {named.url: "up", added.url: "up", drained.url: "drain"}
        eventually(lambda: controller.states() == expected, "what the admin wants")
        sequence = controller.table.sequence
        controller.end(signal.SIGKILL)
        assert controller.states() == expected, "proxies go on with the last table"
        file.write_text("all of this\nis rubbish\n")
        controller.start()
        assert controller.table.sequence > sequence and controller.states() == expected
        assert controller.state()["bandwidth"]["mbps"] == 33
        assert controller.entries()[named.url]["since_ns"] == 0, "nobody starts slowly for it"
        file.write_text(f"{removed.url}\n{named.url}\n{drained.url}\n")
        never(lambda: controller.states() != expected, "a return of what was removed", 1.2)


def test_a_table_that_cannot_be_read_is_replaced(tmp_path: Path, instances: Instances) -> None:
    one = instances.make()
    with running_controller(tmp_path, upstream=[one.url]) as controller:
        controller.end(signal.SIGKILL)
        controller.table.publish({"instances": [{"name": one.url}], "limits": 7})
        controller.start()
        assert controller.said("the settings hold") and controller.states() == {one.url: "up"}


def test_a_controller_whose_probes_fail_with_a_bug_ends(tmp_path: Path, instances: Instances) -> None:
    """The supervisor starts another; one that probes nobody would be worse than none."""
    with running_controller(tmp_path, upstream=[instances.make().url]) as controller:
        assert controller.process is not None
        (tmp_path / "trap").touch()
        assert controller.process.wait(5) == 1 and controller.said("RuntimeError: trapped")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_stopped_controller_takes_no_instance_out(tmp_path: Path, instances: Instances) -> None:
    one = instances.make()
    options = {"upstream": [one.url], "probe_timeout": "0.2", "probe_interval": "0.05"}
    with running_controller(tmp_path, **options) as controller:
        assert controller.process is not None
        for _ in range(3):
            with stopped(controller.process.pid):
                time.sleep(0.4)
            time.sleep(0.1)
        assert controller.states() == {one.url: "up"} and not controller.said("is down")


def test_a_running_load_raises_the_bandwidth_of_now_only(tmp_path: Path, instances: Instances) -> None:
    options = {"bandwidth_mbps": "10", "maximum_bandwidth_mbps": "20"}
    with running_controller(tmp_path, upstream=[instances.make().url], **options) as controller:
        band = controller.state()["bandwidth"]
        assert (band["mbps"], band["minimum_mbps"], band["maximum_mbps"]) == (10, 10, 20)
        proxy = FakeProxy(controller.shared)
        proxy.set(shared_memory.THROTTLED, 1)
        proxy.answer(10, sizes=(60_000, 0))
        eventually(lambda: controller.state()["bandwidth"]["in_mbps"] > 0, "it is seen")
        assert controller.state()["bandwidth"]["mbps"] == 10


# ---------------------------------------------------------------------- the admin's socket


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_other_users_may_not_open_the_admin_socket(tmp_path: Path) -> None:
    path = tmp_path / "new" / "admin.sock"
    with running_controller(tmp_path, upstream=["http://127.0.0.1:1"], admin_socket=str(path)):
        assert mode(path) == 0o600 and mode(path.parent) == 0o700


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[ControllerProcess]:
    with running_controller(tmp_path, upstream=["http://127.0.0.1:1"]) as controller:
        yield controller


def test_the_socket_of_a_killed_controller_is_taken_over(quiet: ControllerProcess) -> None:
    quiet.end(signal.SIGKILL)
    assert quiet.socket.exists()
    quiet.start()
    assert quiet.call("GET", "/state")[0] == 200


def test_the_socket_of_another_load_balancer_is_left_alone(quiet: ControllerProcess, tmp_path: Path) -> None:
    other = ControllerProcess(tmp_path, {"upstream": ["http://127.0.0.1:2"]})
    other.log = tmp_path / "other.log"
    try:
        other.start()  # its socket is the one of the first
        eventually(lambda: other.said("no admin API"), "the complaint")
        assert other.said("set admin_socket")
        assert list(quiet.states()) == ["http://127.0.0.1:1"] and list(other.states()) == [
            "http://127.0.0.1:2"
        ]
        assert other.end() == 0 and quiet.call("GET", "/state")[0] == 200
    finally:
        other.close()


def test_refusals(quiet: ControllerProcess) -> None:
    for method, target, body, status, word in (
        ("PUT", "/bandwidth", {}, 400, "mbps is missing"),
        ("PUT", "/bandwidth", {"mbps": True}, 400, "must be a number"),
        ("PUT", "/bandwidth", {"mbps": "10"}, 400, "must be a number"),
        ("PUT", "/bandwidth", {"mbps": -1}, 400, "from 0"),
        ("PUT", "/bandwidth", {"mbps": 10, "max_mbps": 30}, 400, "at most 20"),
        ("PUT", "/bandwidth", {"mbps": 10, "max_mbps": []}, 400, "must be a number"),
        ("PUT", "/bandwidth", {"mbps": 10, "speed": 1}, 400, "'speed' is unknown"),
        ("PUT", "/bandwidth", [1], 400, "must be a JSON object"),
        ("PUT", "/bandwidth", b'{"mbps": NaN}', 400, "not JSON"),
        ("PUT", "/bandwidth", b"{" * 70_000, 413, "may have"),
        ("GET", "/bandwidth", None, 405, "not allowed"),
        ("POST", "/instances", {"url": 7}, 400, "must be a text"),
        ("POST", "/instances", {"url": "ftp://x"}, 400, "is no instance"),
        ("POST", "/instances/http://nobody:1/drain", None, 404, "no instance 'http://nobody:1'"),
        ("DELETE", "/instances/nobody", None, 404, "no instance 'nobody'"),
        ("GET", "/nothing", None, 404, "no such path"),
    ):  # fmt: skip
        found, answer = quiet.call(method, target, body)
        assert found == status and word in answer["message"] and set(answer) == {"code", "message"}, target
    assert quiet.state()["bandwidth"]["mbps"] == 10 and len(quiet.states()) == 1


def test_a_reload_is_passed_to_the_supervisor(quiet: ControllerProcess) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, stack: heard.append(number))
    try:
        assert quiet.call("POST", "/reload")[0] == 202
        eventually(lambda: heard == [signal.SIGHUP], "the signal")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_live_edit_has_reached_the_bucket_when_it_is_answered(quiet: ControllerProcess) -> None:
    from twofold.loadbalancer.bandwidth.lease import SharedBucket

    bucket = SharedBucket(quiet.shared, quiet.memory_fd)
    for mbps in (50, 5, 0, 10):
        assert quiet.call("PUT", "/bandwidth", {"mbps": mbps})[1]["mbps"] == mbps
        assert bucket.rate == mbps * 1_000_000
