"""What an installation puts on a machine: one import name, whatever else is called `server` there."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.instance_process import descendants, free_port, kill

ROOT = Path(__file__).parents[1]
SOURCES = ("twofold", "server", "loadbalancer", "pyproject.toml", "setup.py", "README.md", "LICENSE")
FOLDERS_OF_A_USER = ("server", "loadbalancer", "tests", "bench", "twofold_model")
IN_TIME = 60.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from a copy of the source that has lost its links, as a zip of it may have."""
    copy, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy / name)
        else:
            shutil.copytree(
                ROOT / name,
                copy / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__", "_native"),
            )
    for half in ("server", "loadbalancer"):
        (copy / "twofold" / half).unlink()
    command = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
        "--no-build-isolation", "--no-deps", "--wheel-dir", str(made), str(copy),
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "TWOFOLD_INTERPRETED": "1"}, timeout=IN_TIME)
    (found,) = made.glob("twofold-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # A .pth file within the folder that this one names is not read: the editable twofold stays out.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin" / "python"


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """The folder of a user who has packages with our folders' names, and a model."""
    for name in FOLDERS_OF_A_USER:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('this is the package of a user')\n")
    shutil.copytree(ROOT / "examples" / "echo", tmp_path / "model")
    return tmp_path


def environ(folder: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TWOFOLD_")}
    return {**clean, "PYTHONPATH": ".", "HOME": str(folder)}


def test_the_top_level_is_twofold_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"twofold"}
    assert "twofold/loadbalancer/control/status.html" in names
    for path in (ROOT / "server").rglob("*.py"):
        assert f"twofold/{path.relative_to(ROOT)}" in names


def test_the_version_names_the_form(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(installed), "-m", "twofold", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "hot path interpreted" in done.stdout


def test_everything_starts_beside_packages_of_the_same_names(installed: Path, crowded: Path) -> None:
    port, front = free_port(), free_port()
    commands = (
        ["-m", "twofold", "serve", "model", "--port", str(port), "--replicas", "1"],
        [
            "-m",
            "twofold",
            "balance",
            "--upstream",
            f"http://127.0.0.1:{port}",
            "--listen",
            f"127.0.0.1:{front}",
        ],
    )
    check = subprocess.run(
        [str(installed), "-m", "twofold", "check", "model"], cwd=crowded, env=environ(crowded),
        capture_output=True, text=True, timeout=IN_TIME,
    )  # fmt: skip
    assert check.returncode == 0, check.stdout + check.stderr
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            with (crowded / f"said-{number}").open("wb") as said:
                started.append(
                    subprocess.Popen(
                        [str(installed), *command],
                        cwd=crowded,
                        env=environ(crowded),
                        stdout=said,
                        stderr=said,
                    )
                )
        assert answer(front, crowded) == {"rows": 2}
        listed = subprocess.run(
            [str(installed), "-m", "twofold", "balance-ctl", "state", "--json"],
            cwd=crowded, env=environ(crowded), capture_output=True, text=True, timeout=IN_TIME,
        )  # fmt: skip
        assert listed.returncode == 0, listed.stderr
    finally:
        for process in started:
            below = descendants(process.pid)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                for pid in (process.pid, *below):
                    kill(pid)


def answer(port: int, folder: Path) -> object:
    """What predict answers through the load balancer, as soon as both serve."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict", b"[1, 2]", {"content-type": "application/json"}
    )

    def said() -> str:
        return "".join(file.read_text() for file in folder.glob("said-*"))

    def ask() -> list[object]:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return [json.load(response)]
        except OSError as error:
            assert "Traceback" not in said(), f"{error}: {said()}"
            getattr(error, "close", lambda: None)()
            return []

    return eventually(ask, said, IN_TIME, lambda: time.sleep(0.2))[0]


def test_another_server_embeds_it(installed: Path, crowded: Path) -> None:
    code = "import twofold.server.app as a; print(type(a.app).__name__)"
    done = subprocess.run(
        [str(installed), "-c", code], cwd=crowded, env=environ(crowded), capture_output=True, text=True
    )
    assert done.stdout == "Starlette\n", done.stderr
