"""A model on a real GPU: one replica for each device, which is its own again after a crash.

Needs an NVIDIA GPU and an interpreter whose PyTorch can use it: TWOFOLD_TORCH_PYTHON, or python3 of PATH.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.instance_process import kill, serve, write_artifact
from twofold.server.machine.capacity import visible_gpus

GPUS = visible_gpus(os.environ)
ROWS = [[1.0, 2.0, 3.0], [0.5, 0.0, -4.0]]
PRODUCT = [
    [14.0, -11.5],
    [-11.5, 16.25],
]  # with the model's weights, which are the same rows
# What it holds besides its weights is so much of the device that no second copy has room beside it.
SCORE = """
import os
import time
import torch

def load_model():
    _, total = torch.cuda.mem_get_info()
    ballast = torch.empty(int(total * float(os.environ["BALLAST"])), dtype=torch.uint8, device="cuda")
    return torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -4.0]], device="cuda"), ballast

def predict(data, model):
    weights, _ = model
    time.sleep(0.2)  # so that several at once meet several replicas
    return {
        "product": (torch.tensor(data, device="cuda") @ weights.T).tolist(),
        "pid": os.getpid(),
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "devices": torch.cuda.device_count(),
    }
"""


@functools.cache
def torch_python() -> str:
    """An interpreter that computes on the GPU, or ""."""
    for name in (os.environ.get("TWOFOLD_TORCH_PYTHON", ""), "python3", sys.executable):
        found = shutil.which(name)
        code = "import torch; torch.ones(1, device='cuda')"
        if found and subprocess.run([found, "-c", code], capture_output=True, timeout=100).returncode == 0:
            return found
    return ""


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    if not GPUS:
        pytest.skip("no NVIDIA GPU here")
    if not torch_python():
        pytest.skip("no interpreter here whose PyTorch can use the GPU; TWOFOLD_TORCH_PYTHON names one")
    return write_artifact(tmp_path / "model", SCORE)


def settings(ballast: float, *options: str) -> tuple[tuple[str, ...], dict[str, str]]:
    return ("--default-python", torch_python(), *options), {"BALLAST": str(ballast)}


def ask(instance: Any, count: int) -> list[dict[str, Any]]:
    """What `count` requests at once are answered; all have to be, and rightly."""
    with ThreadPoolExecutor(count) as threads:
        answers = list(threads.map(lambda _: instance.predict(ROWS), range(count)))
    assert [answer.status for answer in answers] == [200] * count, answers
    found = [answer.json() for answer in answers]
    assert all(one["product"] == PRODUCT for one in found)
    return found


def test_one_replica_for_each_gpu_and_each_sees_only_its_own(artifact: Path, tmp_path: Path) -> None:
    options, environ = settings(0.0)
    with serve(artifact, tmp_path / "run", *options, environ=environ) as instance:
        assert "one for each GPU" in instance.printed()
        assert len(instance.health()["replicas"]) == len(GPUS)
        found = ask(instance, 4 * len(GPUS))
        assert {one["visible"] for one in found} == set(GPUS)
        assert {one["devices"] for one in found} == {1}


def test_more_replicas_than_gpus_share_them(artifact: Path, tmp_path: Path) -> None:
    options, environ = settings(0.0, "--replicas", str(2 * len(GPUS)))
    with serve(artifact, tmp_path / "run", *options, environ=environ) as instance:
        instance.wait_until(lambda: len(instance.replica_pids()) == 2 * len(GPUS), timeout=60)
        instance.wait_until(
            lambda: all(replica["state"] == "ready" for replica in instance.health()["replicas"]), timeout=60
        )
        found = ask(instance, 8 * len(GPUS))
        assert len({(one["pid"], one["visible"]) for one in found}) == 2 * len(GPUS)
        assert {one["visible"] for one in found} == set(GPUS)


def test_the_memory_of_a_killed_replica_is_its_successors(artifact: Path, tmp_path: Path) -> None:
    options, environ = settings(0.6)
    with serve(artifact, tmp_path / "run", *options, environ=environ) as instance:
        first = ask(instance, 1)[0]["pid"]
        kill(first, signal.SIGKILL)
        instance.wait_until(lambda: instance.predict(ROWS).status == 200, timeout=60)
        assert first not in {one["pid"] for one in ask(instance, 2 * len(GPUS))}


def test_nothing_is_imported_before_a_replica_has_its_gpu(artifact: Path, tmp_path: Path) -> None:
    options, environ = settings(0.0, "--preload", "imports")
    with serve(artifact, tmp_path / "run", *options, environ=environ) as instance:
        preload = instance.health()["preload"]
        assert preload["used"] == "none" and "GPU" in preload["why"]
        ask(instance, 2)
