"""The replica runtime on every interpreter of the machine: its own tests, and a model served by it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.instance_process import kill, serve, write_artifact
from tests.support.misbehaving_model import SCORE

HERE = Path(__file__).parent
RUNTIME = Path(__file__).parents[2] / "server" / "replica"
MINORS = range(7, 15)


def interpreters() -> dict[str, str]:
    """A CPython 3.7 to 3.14 of each minor version: from PATH, or from pyenv where that is installed."""
    found: dict[str, str] = {}
    roots = [Path(os.environ[name]) for name in ("PYENV_ROOT",) if name in os.environ] or [
        Path.home() / ".pyenv"
    ]
    for minor in MINORS:
        names = [f"python3.{minor}"]
        names += [
            str(path) for root in roots for path in sorted(root.glob(f"versions/3.{minor}.*/bin/python"))
        ]
        for name in [*names, sys.executable]:
            version = _version(name)
            if version == f"3.{minor}":
                found[version] = name
                break
    return found


def _version(name: str) -> str:
    code = "import sys, ctypes; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([name, "-c", code], capture_output=True, text=True, timeout=30)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


pytest_plugins = ["tests.support.packed_interpreter"]
FOUND = interpreters()


@pytest.mark.parametrize("version", [f"3.{minor}" for minor in MINORS])
def test_the_runtimes_own_tests(version: str) -> None:
    if version not in FOUND:
        pytest.skip(f"no working Python {version} on PATH or under pyenv")
    done = subprocess.run(
        [
            FOUND[version],
            "-B",
            "-m",
            "unittest",
            "discover",
            "-s",
            str(HERE / "replica"),
            "-t",
            str(HERE / "replica"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("version", [f"3.{minor}" for minor in MINORS])
def test_a_model_is_served(version: str, tmp_path: Path) -> None:
    if version not in FOUND:
        pytest.skip(f"no working Python {version} on PATH or under pyenv")
    artifact = write_artifact(tmp_path / "lab", SCORE)
    options = ("--replicas", "2", "--predict-timeout", "2", "--default-python", FOUND[version])
    with serve(artifact, tmp_path / "run", *options) as instance:
        assert instance.health()["python"] == version
        assert instance.predict([1, 2]).json() == {"rows": 2}
        assert instance.predict({"do": "raise"}).status == 500
        assert instance.predict({"do": "once", "then": "segfault", "name": "a"}).json()["replayed"]
        instance.predict({"do": "print", "text": "seen in " + version})
        instance.wait_until(
            lambda: (
                ["seen in " + version] * 2
                == [
                    r["data"]["message"] for r in instance.log("predict") if "seen in" in r["data"]["message"]
                ]
            )
        )
        kill(instance.replica_pids()[0])
        assert instance.predict([1]).status == 200


@pytest.mark.parametrize("path", sorted(RUNTIME.glob("*.py")), ids=lambda path: path.name)
def test_the_grammar_is_that_of_the_oldest_python(path: Path) -> None:
    ast.parse(path.read_text(), str(path), feature_version=(3, 7))


def test_a_packed_environment_serves(tmp_path: Path, packed_environment: object) -> None:
    """conda-pack's archive, its original hidden, a model of two functions, one request."""
    artifact = write_artifact(tmp_path / "lab", SCORE)
    archive, version = str(packed_environment.archive), packed_environment.version  # type: ignore[attr-defined]
    (artifact / "runtime.yaml").write_text(
        "MODEL_ARTIFACT_VERSION: '3.0'\nMODEL_DEPLOYMENT:\n  INFERENCE_CONDA_ENV:\n"
        f"    INFERENCE_ENV_PATH: {archive}\n    INFERENCE_PYTHON_VERSION: '{version}'\n"
    )
    with serve(artifact, tmp_path / "run", "--replicas", "1") as instance:
        assert instance.predict([1, 2, 3]).json() == {"rows": 3}
        prefix = Path(f"/proc/{instance.replica_pids()[0]}/exe").resolve()
        assert tmp_path / "run" / "cache" in prefix.parents
