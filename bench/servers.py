"""The contenders: how each server is started with the same model, and how its answer is read.

Pure description, but for `triton_command`, which lays out Triton's folders in the work folder.
Every server runs two model processes (or web processes that hold the model), keeps connections
alive, and writes no access log, except ours where the name says so.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.environments import BENCH, ENVIRONMENTS, PEERS, Unavailable
from bench.workloads import MODELS

PROJECT = BENCH.parent
REPLICAS = 2
TWOFOLD = Path(sys.prefix, "bin", "twofold")  # of this checkout


@dataclass(frozen=True)
class Setup:
    """What a command line is made from."""

    python: Path
    port: int
    model: Path  # folder with score.py
    work: Path  # a folder of its own


@dataclass(frozen=True)
class Contender:
    """One server under test; `environment` names a folder of bench/peers/, or nothing for ours."""

    name: str
    title: str
    command: Callable[[Setup], list[str]]
    environment: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    path: str = "/predict"
    header: str = ""
    models: tuple[str, ...] = ("rows",)
    read_answer: Callable[[bytes], Any] = json.loads

    @property
    def ours(self) -> bool:
        return not self.environment


def environ_for(contender: Contender, setup: Setup) -> dict[str, str]:
    """The complete environment: one thread per math library, the model importable as `score`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TWOFOLD_")}
    environ.pop("PYTHONPATH", None)
    environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if not contender.ours:
        environ["PYTHONPATH"] = str(setup.model)
        environ["PATH"] = f"{setup.python.parent}:{environ['PATH']}"
    return {**environ, **contender.variables}


def twofold_command(*options: str, program: Path = TWOFOLD) -> Callable[[Setup], list[str]]:
    """`program` is the console script of one installation."""

    def command(setup: Setup) -> list[str]:
        if not program.exists():
            raise Unavailable(f"{program} is missing: install the project into this environment first")
        line = [str(program), "serve", str(setup.model), "--port", str(setup.port)]
        return [*line, "--replicas", str(REPLICAS), "--log-dir", str(setup.work / "logs"), *options]

    return command


def uvicorn_command(setup: Setup) -> list[str]:
    line = [str(setup.python), "-m", "uvicorn", "app:app", "--app-dir", str(PEERS / "uvicorn")]
    line += ["--port", str(setup.port), "--workers", str(REPLICAS), "--loop", "uvloop", "--http", "httptools"]
    return [*line, "--no-access-log", "--log-level", "warning"]


def gunicorn_command(setup: Setup) -> list[str]:
    line = [str(setup.python), "-m", "gunicorn", "app:app", "--chdir", str(PEERS / "gunicorn")]
    line += ["-k", "asgi", "-w", str(REPLICAS), "-b", f"127.0.0.1:{setup.port}", "--asgi-loop", "uvloop"]
    # The C parser (gunicorn_h1c) costs the same here, and its release on the index breaks kept-alive
    # connections after large bodies.
    return [*line, "--http-parser", "python", "--keep-alive", "75", "--no-control-socket"]


def mosec_command(setup: Setup) -> list[str]:
    line = [str(setup.python), str(PEERS / "mosec" / "app.py"), "--address", "127.0.0.1"]
    return [*line, "--port", str(setup.port), "--timeout", "20000", "--path", str(setup.work / "sockets")]


def litserve_command(setup: Setup) -> list[str]:
    return [str(setup.python), str(PEERS / "litserve" / "app.py"), str(setup.port)]


def triton_command(setup: Setup) -> list[str]:
    """The server binary of the nvidia-pytriton wheel, run bare."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    site = ENVIRONMENTS / "triton" / "lib" / f"python{version}" / "site-packages"
    tree = site / "pytriton" / "tritonserver"
    backends, models = setup.work / "backends", setup.work / "models"
    # The core looks for the stub beside the backend, and the wheel keeps one per Python elsewhere.
    shutil.copytree(tree / "backends" / "python", backends / "python", dirs_exist_ok=True)
    shutil.copy(tree / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    (models / "bench" / "1").mkdir(parents=True, exist_ok=True)
    shutil.copy(PEERS / "triton" / "config.pbtxt", models / "bench")
    for file in (PEERS / "triton" / "model.py", setup.model / "score.py"):
        shutil.copy(file, models / "bench" / "1")
    libraries = f"{site / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    line = ["/usr/bin/env", f"LD_LIBRARY_PATH={libraries}", str(tree / "bin" / "tritonserver")]
    line += [f"--model-repository={models}", f"--backend-directory={backends}", "--http-address=127.0.0.1"]
    return [*line, f"--http-port={setup.port}", "--allow-grpc=false", "--allow-metrics=false"]


def triton_answer(content: bytes) -> Any:
    """A JSON head, then the tensor: four bytes of length (in the head's sum), then the element."""
    head, end = json.JSONDecoder().raw_decode(content.decode("latin-1"))
    length = head["outputs"][0]["parameters"]["binary_data_size"]
    return json.loads(content[end:][:length][4:])


CONTENDERS = (
    Contender("twofold", "twofold, access log to a file", twofold_command(), models=("rows", "iris")),
    Contender("twofold-nolog", "twofold, no access log", twofold_command("--no-access-log")),
    Contender("uvicorn", "uvicorn + Starlette, 2 workers", uvicorn_command, "uvicorn"),
    Contender(
        "gunicorn", "FastAPI, gunicorn asgi, 2 workers", gunicorn_command, "gunicorn", models=("rows", "iris")
    ),
    Contender("mosec", "mosec, 2 workers", mosec_command, "mosec", models=("rows", "iris")),
    Contender("mosec-batch", "mosec, 2 workers, batching", mosec_command, "mosec", {"BENCH_BATCH": "16"}),
    Contender(
        "triton",
        "Triton Python backend, 2 instances",
        triton_command,
        "triton",
        path="/v2/models/bench/infer",
        # "raw binary request": no JSON envelope, the body is the one input tensor
        header="Inference-Header-Content-Length: 0",
        read_answer=triton_answer,
    ),
    Contender("litserve", "LitServe, 2 workers", litserve_command, "litserve"),
)
QUICK = ("twofold", "twofold-nolog", "gunicorn", "mosec", "triton")


def models_folder(model: str) -> Path:
    return MODELS / model
