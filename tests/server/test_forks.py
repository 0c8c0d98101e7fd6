"""A predict() that forks: the request stays with the process that took it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.instance_process import Instance, serve, write_artifact

SCORE = """
import os, sys, time


def load_model():
    return None


def predict(data, model=None):
    how = data.get("child")
    if how is None:
        time.sleep(data.get("seconds", 0))
        return data
    child = os.fork()
    if child == 0:
        if how == "exits":
            sys.exit(7)
        if how == "raises":
            raise ValueError("in the child")
        return "the child"
    return {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}
"""
QUEUE = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("forks")
    options = ["--replicas", "1", "--queue-size", str(QUEUE), "--predict-timeout", "5"]
    with serve(write_artifact(folder / "m", SCORE), folder, *options) as instance:
        yield instance


@pytest.mark.parametrize(("child", "status"), [("exits", 7), ("raises", 1), ("returns", 0)])
def test_only_the_parent_of_a_fork_answers(server: Instance, child: str, status: int) -> None:
    processes = len(server.descendants())
    for _ in range(3):
        answer = server.predict({"child": child})
        assert (answer.status, answer.json()) == (200, {"status": status})
    assert len(server.descendants()) == processes  # nobody has stayed in the loop
    waits = [{"n": n, "seconds": 0.05} for n in range(QUEUE)]
    with ThreadPoolExecutor(QUEUE) as pool:
        answers = list(pool.map(server.predict, waits))
    assert [json.loads(answer.body) for answer in answers] == waits  # and no slot was lost


def test_output_of_a_forked_child_is_logged(server: Instance) -> None:
    server.predict({"child": "raises"})
    server.wait_until(lambda: any("in the child" in r["data"]["message"] for r in server.log("predict")))
