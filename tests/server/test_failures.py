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
from pathlib import Path

import pytest

from tests.support.instance_process import Answer, Instance, alive, kill, serve, write_artifact
from tests.support.misbehaving_model import SCORE
from twofold.errors import ExitCode


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "lab", SCORE)


@pytest.fixture
def two(lab: Path, tmp_path: Path) -> Iterator[Instance]:
    with serve(lab, tmp_path / "run", "--replicas", "2", "--predict-timeout", "5") as instance:
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


# --------------------------------------------------------------------- predict() raises


def test_an_exception_is_a_500_and_its_traceback_is_only_in_the_log(two: Instance) -> None:
    pids = two.replica_pids()
    answer = two.predict({"do": "raise"})
    assert answer.status == 500
    assert set(answer.json()) == {"code", "message"}
    assert answer.json()["code"] == "InternalServerError"
    assert b"secret" not in answer.body and b"Traceback" not in answer.body
    request_id = answer.headers["opc-request-id"]

    def logged() -> bool:
        return any(
            "secret" in record["data"]["message"] and record["data"]["opcRequestId"] == request_id
            for record in two.log("predict")
        )

    two.wait_until(logged)
    assert two.replica_pids() == pids


def test_sys_exit_in_predict_is_an_error_and_not_an_end(two: Instance) -> None:
    pids = two.replica_pids()
    assert two.predict({"do": "sysexit"}).status == 500
    assert two.replica_pids() == pids


# --------------------------------------------------------------------- a replica dies


@pytest.mark.parametrize(
    ("how", "reason"),
    [("kill", "SIGKILL"), ("segfault", "SIGSEGV"), ("exit", "exited by itself")],
)
def test_a_request_survives_the_death_of_its_replica(two: Instance, how: str, reason: str) -> None:
    waiting = [{"do": "sleep", "seconds": 0.2, "echo": index} for index in range(8)]
    answers = together(two, [{"do": "once", "then": how, "name": how}, *waiting])
    assert [answer.status for answer in answers] == [200] * 9
    assert answers[0].json()["replayed"]
    assert [answer.json()["echo"] for answer in answers[1:]] == list(range(8))
    two.wait_until(lambda: all_ready(two))
    assert reason in reasons(two)


def test_a_segfault_says_where(two: Instance) -> None:
    two.predict({"do": "once", "then": "segfault", "name": "where"})
    two.wait_until(lambda: "SIGSEGV" in reasons(two))
    assert "score.py" in reasons(two)


def test_replay_never_answers_500(lab: Path, tmp_path: Path) -> None:
    with serve(lab, tmp_path / "run", "--replicas", "2", "--replay", "never") as instance:
        answer = instance.predict({"do": "once", "then": "kill", "name": "never"})
        assert answer.status == 500
        assert "died" in answer.json()["message"]
        assert instance.predict([1]).status == 200


def test_random_kills_under_load_lose_nothing(two: Instance) -> None:
    stop = time.monotonic() + 4.0
    statuses: list[int] = []

    def call(index: int) -> None:
        number = 0
        while time.monotonic() < stop:
            number += 1
            mark = f"{index}-{number}"
            answer = two.predict({"do": "sleep", "seconds": 0.005, "echo": mark})
            statuses.append(answer.status)
            assert answer.status != 200 or answer.json()["echo"] == mark

    def murder() -> None:
        while time.monotonic() < stop - 0.5:
            time.sleep(0.4)
            kill(two.replica_pids()[0])

    with ThreadPoolExecutor(9) as pool:
        for future in [*[pool.submit(call, index) for index in range(8)], pool.submit(murder)]:
            future.result()
    assert len(statuses) > 100
    # Only a request that two kills in a row have hit may fail.
    assert statuses.count(200) >= len(statuses) - 2, statuses


def test_memory_error_is_a_500_and_the_replica_is_replaced(two: Instance) -> None:
    answer = two.predict({"do": "rlimit", "megabytes": 4096})
    assert answer.status == 500
    two.wait_until(lambda: "MemoryError" in reasons(two))
    two.wait_until(lambda: all_ready(two))
    assert two.predict([1, 2]).json() == {"rows": 2}


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


def test_the_kernels_oom_kill_is_recognised_and_survived(two: Instance) -> None:
    folder = _memory_cgroup()
    if folder is None:
        pytest.skip("no writable memory cgroup here (needs root and a mounted memory controller)")
    limit = folder / ("memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes")
    try:
        limit.write_text(str(200 << 20))
        for pid in sorted(two.descendants() | {two.process.pid}):
            (folder / "cgroup.procs").write_text(str(pid))
        answer = two.predict({"do": "once", "then": "allocate", "name": "oom", "megabytes": 1000})
        assert answer.status == 200 and answer.json()["replayed"]
        two.wait_until(lambda: "out of memory" in reasons(two))
    finally:
        two.stop()
        for _ in range(50):
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.1)


# --------------------------------------------------------------------- predict() hangs


@pytest.mark.parametrize("how", ["sleep", "hold-gil"])
def test_a_hang_is_answered_at_the_deadline_and_the_replica_replaced(
    lab: Path, tmp_path: Path, how: str
) -> None:
    with serve(lab, tmp_path / "run", "--replicas", "2", "--predict-timeout", "1") as instance:
        before = set(instance.replica_pids())
        started = time.monotonic()
        answer = instance.predict({"do": how, "seconds": 60})
        assert answer.status == 500 and "predict_timeout" in answer.json()["message"]
        assert 0.9 < time.monotonic() - started < 2.0
        instance.wait_until(lambda: counted(instance, "requests_past_deadline") == 1)
        instance.wait_until(lambda: all_ready(instance) and set(instance.replica_pids()) != before)
        assert "hung" in reasons(instance) and "score.py" in reasons(instance)
        assert instance.predict([1]).status == 200


def test_a_late_answer_reaches_nobody(lab: Path, tmp_path: Path) -> None:
    """Predicts that end just about at their deadline, while others take over their slots."""
    with serve(lab, tmp_path / "run", "--replicas", "4", "--predict-timeout", "0.2") as instance:

        def call(index: int) -> int:
            seconds = 0.17 + 0.06 * (index % 10) / 10
            answer = instance.predict({"do": "sleep", "seconds": seconds, "echo": index})
            assert answer.status == 500 or answer.json()["echo"] == index
            return answer.status

        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(call, range(120)))
        assert 500 in statuses and 200 in statuses


# --------------------------------------------------------------------- poison


def test_a_body_that_kills_twice_is_quarantined_and_kept(two: Instance) -> None:
    poison = {"do": "kill", "echo": "poison"}
    answer = two.predict(poison)
    assert answer.status == 500 and "died" in answer.json()["message"]
    two.wait_until(lambda: all_ready(two))
    restarts = sum(replica["restarts"] for replica in two.health()["replicas"])
    assert restarts == 2
    again = two.predict(poison)
    assert again.status == 500 and "refused for now" in again.json()["message"]
    assert sum(replica["restarts"] for replica in two.health()["replicas"]) == restarts
    two.wait_until(lambda: counted(two, "requests_refused") == 2)
    assert counted(two, "requests_replayed") == 1 and counted(two, "requests_past_deadline") == 0
    kept = list((two.folder / "cache" / "quarantine").glob("*.body"))
    assert [json.loads(path.read_bytes()) for path in kept] == [poison]
    assert two.predict({"echo": 1}).status == 200


def test_a_request_that_lets_nobody_report_it_kills_no_third_replica(two: Instance) -> None:
    # It closes every fd: predict() returns, and then the replica cannot say so.
    answer = two.predict({"do": "close"})
    assert (answer.status, answer.json()["code"]) == (500, "InternalServerError")
    assert "the replica died" in answer.json()["message"]
    two.wait_until(lambda: sum(r["restarts"] for r in two.health()["replicas"]) == 2 and all_ready(two))
    assert "exited with code 1" in reasons(two)  # and not that the model did not load
    assert two.predict([1, 2]).json() == {"rows": 2}


def test_quarantine_ends(lab: Path, tmp_path: Path) -> None:
    with serve(lab, tmp_path / "run", "--replicas", "2", "--quarantine-seconds", "1") as instance:
        poison = {"do": "kill"}
        instance.predict(poison)
        instance.wait_until(lambda: all_ready(instance))
        assert "refused for now" in instance.predict(poison).json()["message"]
        time.sleep(1.2)
        assert "died" in instance.predict(poison).json()["message"]


# --------------------------------------------------------------------- crash loops


def test_replicas_that_die_on_start_are_retried_with_patience(lab: Path, two: Instance) -> None:
    (lab / "refuse-to-load").touch()
    for pid in two.replica_pids():
        kill(pid)
    two.wait_until(lambda: two.health()["state"] == "failed")
    time.sleep(2.0)
    health = two.call("/health")
    assert health.status == 503
    assert "refuses to load" in health.body.decode()
    assert sum(replica["restarts"] for replica in health.json()["replicas"]) < 16
    refused = two.predict([1])
    assert refused.status == 503 and int(refused.headers["retry-after"]) >= 1
    (lab / "refuse-to-load").unlink()
    two.wait_until(lambda: all_ready(two), 20)
    assert two.predict([1]).status == 200


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


def test_a_killed_front_is_replaced_and_its_slots_come_back(two: Instance) -> None:
    with socket.create_connection((two.host, two.port)) as idle, ThreadPoolExecutor(6) as pool:
        lost = [pool.submit(two.predict, {"do": "sleep", "seconds": 0.5, "note": n}) for n in range(6)]
        time.sleep(0.3)
        kill(child_named(two, "front"))
        for future in lost:
            with pytest.raises((OSError, http.client.HTTPException)):
                future.result()
        assert idle.recv(1) == b""
    assert two.wait_until(lambda: two.predict([1]).status == 200)
    for _ in range(20):
        answers = together(two, [{"echo": index} for index in range(8)])
        assert [answer.json()["echo"] for answer in answers] == list(range(8))
    assert "front 0 ended" in two.printed()


def test_a_front_that_is_told_to_end_alone_is_replaced(two: Instance) -> None:
    before = two.descendants()
    kill(child_named(two, "front"), signal.SIGTERM)
    two.wait_until(lambda: two.descendants() - before)
    assert [two.predict([1]).status for _ in range(20)] == [200] * 20


def test_a_killed_fork_server_takes_no_replica_with_it(two: Instance) -> None:
    pids = two.replica_pids()
    kill(child_named(two, "fork_server"))
    assert two.predict([1]).status == 200
    assert two.replica_pids() == pids
    kill(pids[0])
    two.wait_until(lambda: all_ready(two) and two.replica_pids() != pids)


def test_a_fork_server_that_hangs_is_replaced(lab: Path, tmp_path: Path) -> None:
    options = ["--replicas", "1", "--load-timeout", "1"]
    with serve(lab, tmp_path / "run", *options) as instance:
        (replica,) = instance.replica_pids()
        fork_server = child_named(instance, "fork_server")
        os.kill(fork_server, signal.SIGSTOP)
        kill(replica)
        instance.wait_until(lambda: not alive(fork_server))
        instance.wait_until(lambda: all_ready(instance, 1))
        assert instance.predict([1]).json() == {"rows": 1}


def test_a_model_that_hangs_in_the_fork_server_is_not_waited_for(lab: Path, tmp_path: Path) -> None:
    (lab / "slow-load").write_text("600")
    (lab / "sample.json").write_text("[1]")
    options = ["--replicas", "1", "--load-timeout", "1", "--preload", "model"]
    with serve(lab, tmp_path / "run", *options, wait=False) as instance:
        assert instance.process.wait(10) == ExitCode.MODEL
        assert "did not load within 1 s" in instance.printed()


def test_a_killed_log_writer_is_replaced_and_logging_goes_on(two: Instance) -> None:
    two.predict([1])
    two.wait_until(lambda: two.log("access"))
    kill(child_named(two, "log_writer"))
    two.wait_until(lambda: "log writer ended" in two.printed())
    request_id = two.predict([1]).headers["opc-request-id"]
    two.wait_until(lambda: any(record["data"]["opcRequestId"] == request_id for record in two.log("access")))


def test_what_predict_forked_ends_with_its_replica(two: Instance) -> None:
    answer = two.predict({"do": "fork"}).json()
    assert alive(answer["child"])
    kill(answer["pid"])
    two.wait_until(lambda: not alive(answer["child"]))


# --------------------------------------------------------------------- clients


def test_a_client_that_left_is_not_computed_for(lab: Path, tmp_path: Path) -> None:
    with serve(lab, tmp_path / "run", "--replicas", "1") as instance:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(instance.predict, {"do": "sleep", "seconds": 1.0})
            time.sleep(0.2)
            body = json.dumps({"note": "left"}).encode()
            client = socket.create_connection((instance.host, instance.port))
            client.sendall(
                b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            time.sleep(0.2)
            client.close()
            assert first.result().status == 200
        instance.predict({"note": "stayed"})
        assert (lab / "calls").read_text() == "stayed\n"
        instance.wait_until(lambda: 499 in [record["data"]["status"] for record in instance.log("access")])


def test_a_full_queue_is_a_503_with_retry_after(lab: Path, tmp_path: Path) -> None:
    with serve(lab, tmp_path / "run", "--replicas", "1", "--queue-size", "4") as instance:
        answers = together(instance, [{"do": "sleep", "seconds": 0.3, "echo": index} for index in range(12)])
        refused = [answer for answer in answers if answer.status == 503]
        assert len(refused) == 8
        assert all(answer.json()["code"] == "ServiceUnavailable" for answer in refused)
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert instance.predict([1]).status == 200


# --------------------------------------------------------------------- stopping


def test_stop_finishes_what_is_in_hand(lab: Path, tmp_path: Path) -> None:
    with serve(lab, tmp_path / "run", "--replicas", "2") as instance, ThreadPoolExecutor(6) as pool:
        everybody = instance.descendants()
        running = [
            pool.submit(instance.predict, {"do": "sleep", "seconds": 0.5, "echo": n}) for n in range(6)
        ]
        time.sleep(0.3)
        assert instance.stop() == 0
        assert [future.result().json()["echo"] for future in running] == list(range(6))
        assert not [pid for pid in everybody if alive(pid)]


def test_stopping_answers_or_refuses_whoever_connects(two: Instance) -> None:
    # A connection that the kernel takes and nobody serves would be a request lost.
    def ask_until_refused(number: int) -> str:
        while True:
            client = http.client.HTTPConnection(two.host, two.port, timeout=10)
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
        time.sleep(0.5)
        assert two.stop() == 0
        assert {end.result() for end in ends} == {"refused"}


def test_a_second_signal_stops_at_once(lab: Path, tmp_path: Path) -> None:
    with serve(lab, tmp_path / "run", "--replicas", "1") as instance:
        thread = threading.Thread(
            target=lambda: _swallow(lambda: instance.predict({"do": "sleep", "seconds": 20}))
        )
        thread.start()
        time.sleep(0.3)
        instance.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        started = time.monotonic()
        instance.stop()
        assert time.monotonic() - started < 6
        thread.join(5)


def _swallow(call: object) -> None:
    try:
        call()  # type: ignore[operator]
    except (OSError, http.client.HTTPException):
        pass  # its connection is cut, which is the point


def test_sigkill_of_the_supervisor_leaves_nothing(two: Instance) -> None:
    everybody = two.descendants()
    assert len(everybody) >= 5
    shared = set(os.listdir("/dev/shm"))
    kill(two.process.pid)
    two.process.wait(5)
    two.wait_until(lambda: not [pid for pid in everybody if alive(pid)], 5)
    assert set(os.listdir("/dev/shm")) <= shared
    with pytest.raises(OSError):
        socket.create_connection((two.host, two.port), 1).close()


# --------------------------------------------------------------------- spare and preload


def test_a_warm_spare_makes_a_crash_a_switch(lab: Path, tmp_path: Path) -> None:
    with serve(lab, tmp_path / "run", "--replicas", "1", "--spare", "1") as instance:
        replicas = instance.health()["replicas"]
        assert sorted(replica["state"] for replica in replicas) == ["ready", "spare"]
        spare = next(replica["pid"] for replica in replicas if replica["state"] == "spare")
        (lab / "slow-load").write_text("3")
        started = time.monotonic()
        answer = instance.predict({"do": "once", "then": "kill", "name": "spare"})
        assert answer.status == 200 and answer.json()["pid"] == spare
        assert time.monotonic() - started < 2
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


def test_preload_model_without_a_sample_is_not_used(lab: Path, tmp_path: Path) -> None:
    with serve(lab, tmp_path / "run", "--replicas", "1", "--preload", "model") as instance:
        assert instance.health()["preload"]["used"] == "none"
        assert "sample" in instance.health()["preload"]["why"]


# --------------------------------------------------------------------- logs


def test_a_full_disk_drops_lines_and_no_request(lab: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("cannot mount a small tmpfs here (needs root)")
    try:
        with serve(lab, tmp_path / "run", "--replicas", "2", "--log-dir", str(disk)) as instance:
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
