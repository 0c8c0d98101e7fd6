"""The application under somebody else's server: uvicorn starts it, it starts an instance of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.instance_process import Instance, alive, descendants, free_port, kill, write_artifact
from tests.support.misbehaving_model import SCORE

pytest.importorskip("uvicorn")


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Instance]:
    artifact = write_artifact(tmp_path / "lab", SCORE)
    port = free_port()
    output = tmp_path / "output.txt"
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith("TWOFOLD_")},
        "TWOFOLD_ARTIFACT": str(artifact),
        "TWOFOLD_REPLICAS": "2",
        "TWOFOLD_PREDICT_TIMEOUT": "2",
        "TWOFOLD_CACHE_DIR": str(tmp_path / "cache"),
        "TWOFOLD_LOG_DIR": str(tmp_path / "logs"),
    }
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "uvicorn",
                "twofold.server.app:app",
                "--port",
                str(port),
                "--log-level",
                "warning",
            ],
            env=environ,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    instance = Instance(process, "127.0.0.1", port, tmp_path, output)
    below: set[int] = set()
    try:
        instance.wait_until(lambda: answers(instance), 20)
        below = instance.descendants()
        yield instance
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            kill(process.pid)
        for pid in below | descendants(process.pid):
            kill(pid)


def answers(instance: Instance) -> bool:
    try:
        return instance.call("/health").status == 200
    except OSError:
        return False


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "TWOFOLD_ARTIFACT: no artifact is named"),
        ({"TWOFOLD_PROT": "1"}, "TWOFOLD_PROT: there is no setting 'prot' (did you mean port?)"),
        ({"TWOFOLD_ARTIFACT": "/no/such/artifact"}, "there is no /no/such/artifact"),
    ],
)
def test_errors_are_reported_without_a_traceback(variables: dict[str, str], words: str) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TWOFOLD_")}
    command = [sys.executable, "-m", "uvicorn", "twofold.server.app:app", "--port", str(free_port())]
    done = subprocess.run(command, env={**environ, **variables}, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert words in done.stderr and "Traceback" not in done.stderr


def test_predict_is_served(embedded: Instance) -> None:
    answer = embedded.predict([1, 2, 3])
    assert answer.status == 200 and answer.json() == {"rows": 3}
    assert len(answer.headers["opc-request-id"].split("/")) == 3
    assert "predict;dur=" in answer.headers["server-timing"]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: embedded.predict({"echo": n}).json()["echo"], range(64)))
    assert results == list(range(64))


def test_errors_are_those_of_the_express_lane(embedded: Instance) -> None:
    assert embedded.call("/predict").status == 405
    assert embedded.call("/predict", b"[1,").json()["code"] == "InvalidParameter"
    assert embedded.predict({"do": "raise"}).status == 500
    assert embedded.predict({"do": "sleep", "seconds": 30}).status == 500


def test_a_request_survives_the_death_of_its_replica(embedded: Instance) -> None:
    assert embedded.predict({"do": "once", "then": "kill", "name": "embedded"}).json()["replayed"]


def test_large_bodies_pass(embedded: Instance) -> None:
    body = os.urandom(5_000_000)
    answer = embedded.call("/predict", body, headers={"content-type": "application/octet-stream"})
    assert answer.json() == {"bytes": 5_000_000}


def test_the_instance_ends_with_its_host(embedded: Instance) -> None:
    below = embedded.descendants()
    assert len(below) >= 4
    kill(embedded.process.pid)
    embedded.process.wait(5)
    eventually(lambda: not any(map(alive, below)), "the end of all its processes")
