"""Every row of "what happens when" in docs/design.md, with the failure really provoked."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.support.eventually import eventually, never
from tests.support.instance_process import Answer, Instance, alive, kill, serve, write_artifact
from tests.support.misbehaving_model import SCORE
from twofold.errors import ExitCode


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "lab", SCORE)


@pytest.fixture
def instance(model: Path, tmp_path: Path) -> Iterator[Instance]:
    with serve(model, tmp_path / "run", "--replicas", "2", "--predict-timeout", "5") as instance:
        yield instance


def together(instance: Instance, values: list[object], timeout: float = 30.0) -> list[Answer]:
    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(lambda value: instance.predict(value, timeout), values))


def all_ready(instance: Instance, count: int = 2) -> bool:
    states = [replica["state"] for replica in instance.health()["replicas"]]
    return states.count("ready") == count


def counted(instance: Instance, name: str) -> float:
    """A counter of /metrics; a front adds to it within a tick."""
    (line,) = (
        line
        for line in instance.call("/metrics").body.decode().splitlines()
        if line.startswith(f"twofold_{name}_total ")
    )
    return float(line.rpartition(" ")[2])


def reasons(instance: Instance) -> str:
    return " | ".join(replica["reason"] for replica in instance.health()["replicas"])


def restarts(instance: Instance) -> int:
    return sum(replica["restarts"] for replica in instance.health()["replicas"])


# --------------------------------------------------------------------- predict() raises


def test_an_exception_is_a_500_and_its_traceback_is_only_in_the_log(instance: Instance) -> None:
    pids = instance.replica_pids()
    answer = instance.predict({"do": "raise"})
    assert answer.status == 500
    assert set(answer.json()) == {"code", "message"}
    assert answer.json()["code"] == "InternalServerError"
    assert b"secret" not in answer.body and b"Traceback" not in answer.body
    request_id = answer.headers["opc-request-id"]

    def logged() -> bool:
        return any(
            "secret" in record["data"]["message"] and record["data"]["opcRequestId"] == request_id
            for record in instance.log("predict")
        )

    instance.wait_until(logged)
    assert instance.replica_pids() == pids


def test_sys_exit_in_predict_is_an_error_and_ends_no_replica(instance: Instance) -> None:
    pids = instance.replica_pids()
    assert instance.predict({"do": "sysexit"}).status == 500
    assert instance.replica_pids() == pids


# --------------------------------------------------------------------- a replica dies


@pytest.mark.parametrize(
    ("how", "reason"),
    [("kill", "SIGKILL"), ("segfault", "SIGSEGV"), ("exit", "exited by itself")],
)
def test_a_request_survives_the_death_of_its_replica(instance: Instance, how: str, reason: str) -> None:
    waiting = [{"do": "sleep", "seconds": 0.2, "echo": index} for index in range(8)]
    answers = together(instance, [{"do": "once", "then": how, "name": how}, *waiting])
    assert [answer.status for answer in answers] == [200] * 9
    assert answers[0].json()["replayed"]
    assert [answer.json()["echo"] for answer in answers[1:]] == list(range(8))
    instance.wait_until(lambda: all_ready(instance))
    assert reason in reasons(instance)


def test_a_segfault_is_reported_with_its_place_in_the_code(instance: Instance) -> None:
    instance.predict({"do": "once", "then": "segfault", "name": "where"})
    instance.wait_until(lambda: "SIGSEGV" in reasons(instance))
    assert "score.py" in reasons(instance)


def test_replay_never_answers_500(model: Path, tmp_path: Path) -> None:
    with serve(model, tmp_path / "run", "--replicas", "2", "--replay", "never") as instance:
        answer = instance.predict({"do": "once", "then": "kill", "name": "never"})
        assert answer.status == 500
        assert "died" in answer.json()["message"]
        assert instance.predict([1]).status == 200


def test_random_kills_under_load_lose_nothing(instance: Instance) -> None:
    stop = threading.Event()
    statuses: list[int] = []

    def call(index: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            mark = f"{index}-{number}"
            answer = instance.predict({"do": "sleep", "seconds": 0.005, "echo": mark})
            statuses.append(answer.status)
            assert answer.status != 200 or answer.json()["echo"] == mark

    def served(count: int) -> bool:
        return len(statuses) >= count

    with ThreadPoolExecutor(8) as pool:
        try:
            calls = [pool.submit(call, index) for index in range(8)]
            for kills in range(1, 9):
                kill(instance.replica_pids()[0])
                eventually(partial(served, 20 * kills), "answers")
                instance.wait_until(lambda: all_ready(instance))
        finally:
            stop.set()
        for each in calls:
            each.result()
    # Only a request that two kills in a row have hit may fail.
    assert statuses.count(200) >= len(statuses) - 2, statuses


def test_memory_error_is_a_500_and_the_replica_is_replaced(instance: Instance) -> None:
    answer = instance.predict({"do": "rlimit", "megabytes": 4096})
    assert answer.status == 500
    instance.wait_until(lambda: "MemoryError" in reasons(instance))
    instance.wait_until(lambda: all_ready(instance))
    assert instance.predict([1, 2]).json() == {"rows": 2}


def _memory_cgroup() -> Path | None:
    """A fresh memory cgroup that we may use, v1 or v2, or None."""
    name = f"twofold-test-{os.getpid()}"
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        folder = root / name
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / "memory.limit_in_bytes").exists() or (folder / "memory.max").exists():
            return folder
        folder.rmdir()
    return None


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except OSError:
        return False
    return True


def test_the_kernels_oom_kill_is_recognised_and_survived(instance: Instance) -> None:
    folder = _memory_cgroup()
    if folder is None:
        pytest.skip("no writable memory cgroup here (needs root and a mounted memory controller)")
    limit = folder / ("memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes")
    try:
        limit.write_text(str(200 << 20))
        for pid in sorted(instance.descendants() | {instance.process.pid}):
            (folder / "cgroup.procs").write_text(str(pid))
        answer = instance.predict({"do": "once", "then": "allocate", "name": "oom", "megabytes": 1000})
        assert answer.status == 200 and answer.json()["replayed"]
        instance.wait_until(lambda: "out of memory" in reasons(instance))
    finally:
        instance.stop()
        eventually(lambda: _removed(folder), "the end of all in the cgroup")


# --------------------------------------------------------------------- predict() hangs


@pytest.mark.parametrize("how", ["sleep", "hold-gil"])
def test_a_hang_is_answered_at_the_deadline_and_the_replica_replaced(
    model: Path, tmp_path: Path, how: str
) -> None:
    with serve(model, tmp_path / "run", "--replicas", "2", "--predict-timeout", "1") as instance:
        before = set(instance.replica_pids())
        started = time.monotonic()
        answer = instance.predict({"do": how, "seconds": 60})
        assert answer.status == 500 and "predict_timeout" in answer.json()["message"]
        assert 0.9 < time.monotonic() - started < 30
        instance.wait_until(lambda: counted(instance, "requests_past_deadline") == 1)
        instance.wait_until(lambda: all_ready(instance) and set(instance.replica_pids()) != before)
        assert "hung" in reasons(instance) and "score.py" in reasons(instance)
        assert instance.predict([1]).status == 200


def test_a_late_answer_is_dropped(model: Path, tmp_path: Path) -> None:
    """Predicts that end just about at their deadline, while others take over their slots."""
    with serve(model, tmp_path / "run", "--replicas", "4", "--predict-timeout", "0.2") as instance:

        def call(index: int) -> int:
            seconds = 0.17 + 0.06 * (index % 10) / 10
            answer = instance.predict({"do": "sleep", "seconds": seconds, "echo": index})
            assert answer.status == 500 or answer.json()["echo"] == index
            return answer.status

        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(call, range(120)))
        assert 500 in statuses and 200 in statuses


# --------------------------------------------------------------------- poison


def test_a_body_that_kills_twice_is_quarantined_and_kept(instance: Instance) -> None:
    poison = {"do": "kill", "echo": "poison"}
    answer = instance.predict(poison)
    assert answer.status == 500 and "died" in answer.json()["message"]
    instance.wait_until(lambda: all_ready(instance))
    assert restarts(instance) == 2
    again = instance.predict(poison)
    assert again.status == 500 and "refused for now" in again.json()["message"]
    assert restarts(instance) == 2
    instance.wait_until(lambda: counted(instance, "requests_refused") == 2)
    assert counted(instance, "requests_replayed") == 1 and counted(instance, "requests_past_deadline") == 0
    kept = list((instance.folder / "cache" / "quarantine").glob("*.body"))
    assert [json.loads(path.read_bytes()) for path in kept] == [poison]
    assert instance.predict({"echo": 1}).status == 200


def test_a_request_that_closes_all_descriptors_kills_no_third_replica(instance: Instance) -> None:
    # It closes every fd: predict() returns, and then the replica cannot say so.
    answer = instance.predict({"do": "close"})
    assert (answer.status, answer.json()["code"]) == (500, "InternalServerError")
    assert "the replica died" in answer.json()["message"]
    instance.wait_until(lambda: restarts(instance) == 2 and all_ready(instance))
    assert "exited with code 1" in reasons(instance)  # and not that the model did not load
    assert instance.predict([1, 2]).json() == {"rows": 2}


def test_quarantine_ends(model: Path, tmp_path: Path) -> None:
    with serve(model, tmp_path / "run", "--replicas", "2", "--quarantine-seconds", "3") as instance:
        poison = {"do": "kill"}
        instance.predict(poison)
        instance.wait_until(lambda: all_ready(instance))
        assert "refused for now" in instance.predict(poison).json()["message"]
        instance.wait_until(lambda: "died" in instance.predict(poison).json()["message"])


# --------------------------------------------------------------------- crash loops


def test_replicas_that_die_on_start_are_retried_with_growing_pauses(model: Path, instance: Instance) -> None:
    (model / "refuse-to-load").touch()
    for pid in instance.replica_pids():
        kill(pid)
    instance.wait_until(
        lambda: instance.health()["state"] == "failed" and "refuses to load" in reasons(instance)
    )
    assert instance.call("/health").status == 503
    never(lambda: restarts(instance) >= 16, "restarts without a pause between them", 2.0)
    refused = instance.predict([1])
    assert refused.status == 503 and int(refused.headers["retry-after"]) >= 1
    (model / "refuse-to-load").unlink()
    instance.wait_until(lambda: all_ready(instance), 20)
    assert instance.predict([1]).status == 200


# --------------------------------------------------------------------- fronts, fork server, log writer


def child_named(instance: Instance, what: str) -> int:
    """The pid of a direct child: `front`, `log writer` or `fork server`."""
    below = instance.descendants() - set(instance.replica_pids())
    with_fork_server = {
        pid for pid in below if b"\0fork_server\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }
    if what == "fork_server":
        return with_fork_server.pop()
    forked = sorted(below - with_fork_server)
    return forked[0] if what == "log_writer" else forked[1]


def test_a_killed_front_is_replaced_and_its_slots_come_back(model: Path, instance: Instance) -> None:
    with socket.create_connection((instance.host, instance.port)) as idle, ThreadPoolExecutor(6) as pool:
        lost = [pool.submit(instance.predict, {"do": "wait", "note": n}) for n in range(6)]
        instance.holds(6)
        kill(child_named(instance, "front"))
        for future in lost:
            with pytest.raises((OSError, http.client.HTTPException)):
                future.result()
        assert idle.recv(1) == b""
    (model / "go-on").touch()
    assert instance.wait_until(lambda: instance.predict([1]).status == 200)
    for _ in range(20):
        answers = together(instance, [{"echo": index} for index in range(8)])
        assert [answer.json()["echo"] for answer in answers] == list(range(8))
    assert "front 0 ended" in instance.printed()


def test_a_front_that_gets_sigterm_is_replaced(instance: Instance) -> None:
    before = instance.descendants()
    kill(child_named(instance, "front"), signal.SIGTERM)
    instance.wait_until(lambda: instance.descendants() - before)
    assert [instance.predict([1]).status for _ in range(20)] == [200] * 20


def test_a_killed_fork_server_takes_no_replica_with_it(instance: Instance) -> None:
    pids = instance.replica_pids()
    kill(child_named(instance, "fork_server"))
    assert instance.predict([1]).status == 200
    assert instance.replica_pids() == pids
    kill(pids[0])
    instance.wait_until(lambda: all_ready(instance) and instance.replica_pids() != pids)


def test_a_fork_server_that_hangs_is_replaced(model: Path, tmp_path: Path) -> None:
    options = ["--replicas", "1", "--load-timeout", "3"]
    with serve(model, tmp_path / "run", *options) as instance:
        (replica,) = instance.replica_pids()
        fork_server = child_named(instance, "fork_server")
        os.kill(fork_server, signal.SIGSTOP)
        kill(replica)
        instance.wait_until(lambda: not alive(fork_server))
        instance.wait_until(lambda: all_ready(instance, 1))
        assert instance.predict([1]).json() == {"rows": 1}


def test_a_model_that_hangs_in_the_fork_server_is_not_waited_for(model: Path, tmp_path: Path) -> None:
    (model / "slow-load").write_text("600")
    (model / "sample.json").write_text("[1]")
    options = ["--replicas", "1", "--load-timeout", "1", "--preload", "model"]
    with serve(model, tmp_path / "run", *options, wait=False) as instance:
        assert instance.process.wait(10) == ExitCode.MODEL
        assert "did not load within 1 s" in instance.printed()


def test_a_killed_log_writer_is_replaced_and_logging_goes_on(instance: Instance) -> None:
    instance.predict([1])
    instance.wait_until(lambda: instance.log("access"))
    kill(child_named(instance, "log_writer"))
    instance.wait_until(lambda: "log writer ended" in instance.printed())
    request_id = instance.predict([1]).headers["opc-request-id"]
    instance.wait_until(
        lambda: any(record["data"]["opcRequestId"] == request_id for record in instance.log("access"))
    )


def test_children_of_predict_end_with_their_replica(instance: Instance) -> None:
    answer = instance.predict({"do": "fork"}).json()
    assert alive(answer["child"])
    kill(answer["pid"])
    instance.wait_until(lambda: not alive(answer["child"]))


# --------------------------------------------------------------------- clients


def test_a_request_whose_client_left_is_skipped(model: Path, tmp_path: Path) -> None:
    with serve(model, tmp_path / "run", "--replicas", "1") as instance:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(instance.predict, {"do": "wait"})
            instance.holds(1)
            body = json.dumps({"note": "left"}).encode()
            client = socket.create_connection((instance.host, instance.port))
            client.sendall(
                b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            instance.holds(2)
            client.close()
            instance.wait_until(lambda: instance.metric("twofold_requests_abandoned_total") == 1)
            (model / "go-on").touch()
            assert first.result().status == 200
        instance.predict({"note": "stayed"})
        assert (model / "calls").read_text() == "stayed\n"
        instance.wait_until(lambda: 499 in [record["data"]["status"] for record in instance.log("access")])


def test_a_full_queue_is_a_503_with_retry_after(model: Path, tmp_path: Path) -> None:
    with serve(model, tmp_path / "run", "--replicas", "1", "--queue-size", "4") as instance:
        with ThreadPoolExecutor(12) as pool:
            calls = [pool.submit(instance.predict, {"do": "wait", "echo": index}) for index in range(12)]
            instance.wait_until(lambda: sum(call.done() for call in calls) == 8)
            (model / "go-on").touch()
            answers = [call.result() for call in calls]
        refused = [answer for answer in answers if answer.status == 503]
        assert len(refused) == 8
        assert all(answer.json()["code"] == "ServiceUnavailable" for answer in refused)
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert instance.predict([1]).status == 200


# --------------------------------------------------------------------- stopping


def test_stop_finishes_requests_in_flight(model: Path, tmp_path: Path) -> None:
    with serve(model, tmp_path / "run", "--replicas", "2") as instance, ThreadPoolExecutor(6) as pool:
        everybody = instance.descendants()
        running = [pool.submit(instance.predict, {"do": "wait", "echo": n}) for n in range(6)]
        instance.holds(6)
        instance.process.send_signal(signal.SIGTERM)
        instance.wait_until(lambda: "stopping" in instance.printed())
        (model / "go-on").touch()
        assert instance.process.wait(20) == 0
        assert [future.result().json()["echo"] for future in running] == list(range(6))
        assert not [pid for pid in everybody if alive(pid)]


def test_stopping_answers_or_refuses_new_connections(instance: Instance) -> None:
    # A connection that the kernel takes and nobody serves would be a request lost.
    def ask_until_refused(number: int) -> str:
        while True:
            client = http.client.HTTPConnection(instance.host, instance.port, timeout=10)
            try:
                client.connect()
            except ConnectionRefusedError:
                return "refused"
            try:
                client.request("POST", "/predict", body=json.dumps({"echo": number}))
                answer = client.getresponse()
                if json.loads(answer.read())["echo"] != number:
                    return "another's answer"
            except (OSError, http.client.HTTPException) as error:
                return repr(error)
            finally:
                client.close()

    with ThreadPoolExecutor(16) as pool:
        ends = [pool.submit(ask_until_refused, number) for number in range(16)]
        instance.wait_until(lambda: instance.metric('twofold_requests_total{status="200"}') > 100)
        assert instance.stop() == 0
        assert {end.result() for end in ends} == {"refused"}


def test_a_second_signal_stops_at_once(model: Path, tmp_path: Path) -> None:
    with serve(model, tmp_path / "run", "--replicas", "1") as instance:
        thread = threading.Thread(
            target=lambda: _swallow(lambda: instance.predict({"do": "sleep", "seconds": 20}))
        )
        thread.start()
        instance.holds(1)
        instance.process.send_signal(signal.SIGTERM)
        instance.wait_until(lambda: "stopping" in instance.printed())
        started = time.monotonic()
        instance.stop()
        assert time.monotonic() - started < 15, "it waits for a request of 20 s"
        thread.join(5)


def _swallow(call: object) -> None:
    try:
        call()  # type: ignore[operator]
    except (OSError, http.client.HTTPException):
        pass  # its connection is cut, which is the point


def test_sigkill_of_the_supervisor_leaves_nothing(instance: Instance) -> None:
    everybody = instance.descendants()
    assert len(everybody) >= 5
    shared = set(os.listdir("/dev/shm"))
    kill(instance.process.pid)
    instance.process.wait(5)
    instance.wait_until(lambda: not [pid for pid in everybody if alive(pid)], 5)
    assert set(os.listdir("/dev/shm")) <= shared
    with pytest.raises(OSError):
        socket.create_connection((instance.host, instance.port), 1).close()


# --------------------------------------------------------------------- spare and preload


def test_a_spare_replica_takes_over_after_a_crash(model: Path, tmp_path: Path) -> None:
    with serve(model, tmp_path / "run", "--replicas", "1", "--spare", "1") as instance:
        replicas = instance.health()["replicas"]
        assert sorted(replica["state"] for replica in replicas) == ["ready", "spare"]
        spare = next(replica["pid"] for replica in replicas if replica["state"] == "spare")
        (model / "slow-load").write_text("3")
        answer = instance.predict({"do": "once", "then": "kill", "name": "spare"})
        assert answer.status == 200 and answer.json()["pid"] == spare
        instance.wait_until(
            lambda: sorted(r["state"] for r in instance.health()["replicas"]) == ["ready", "spare"]
        )


SHARED = """
import os
def load_model():
    return bytearray(os.urandom(1 << 20) * 64)
MODEL = None
def predict(data, model=load_model()):
    return {"pid": os.getpid(), "size": len(model)}
"""

UNFORKABLE = """
import os, time
LOADED_BY = []
def load_model():
    LOADED_BY.append(os.getpid())
def predict(data, model=load_model()):
    if os.getpid() not in LOADED_BY:
        os._exit(1)
    return {"pid": os.getpid()}
"""


def test_preload_model_shares_memory(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "shared", SHARED, sample__json="[1]")
    with serve(artifact, tmp_path / "run", "--replicas", "3", "--preload", "model") as instance:
        assert instance.health()["preload"]["used"] == "model"
        assert instance.health()["preload"]["memory_saved_mb"] > 100
        assert all(replica["memory_mb"] < 30 for replica in instance.health()["replicas"])
        assert len({instance.predict([1]).json()["pid"] for _ in range(30)}) >= 1
        assert "PSS" in instance.printed()


def test_preload_model_falls_back_where_a_fork_cannot_predict(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "unforkable", UNFORKABLE, sample__json="[1]")
    with serve(artifact, tmp_path / "run", "--replicas", "2", "--preload", "model") as instance:
        preload = instance.health()["preload"]
        assert preload["used"] == "none" and "trial" in preload["why"]
        assert instance.predict([1]).status == 200


def test_preload_model_without_a_sample_is_not_used(model: Path, tmp_path: Path) -> None:
    with serve(model, tmp_path / "run", "--replicas", "1", "--preload", "model") as instance:
        assert instance.health()["preload"]["used"] == "none"
        assert "sample" in instance.health()["preload"]["why"]


# --------------------------------------------------------------------- logs


def test_a_full_disk_drops_lines_and_no_request(model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("cannot mount a small tmpfs here (needs root)")
    try:
        with serve(model, tmp_path / "run", "--replicas", "2", "--log-dir", str(disk)) as instance:
            for _ in range(300):
                assert instance.predict([1]).status == 200
            dropped = 'twofold_log_lines_dropped_total{stream="access"}'
            metrics = instance.wait_until(
                lambda: [
                    line for line in instance.call("/metrics").body.decode().splitlines()
                    if line.startswith(dropped) and not line.endswith(" 0.0")
                ]
            )  # fmt: skip
            assert metrics
            (disk / "access.log").write_bytes(b"")
            request_id = instance.predict([1]).headers["opc-request-id"]
            instance.wait_until(lambda: request_id.encode() in (disk / "access.log").read_bytes())
            for line in (disk / "access.log").read_bytes().splitlines():
                json.loads(line)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
