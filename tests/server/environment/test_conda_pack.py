"""A real interpreter, packed with conda-pack, its original gone, unpacked and run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from twofold.errors import EnvironmentFailure
from twofold.server.artifact.artifact import Runtime
from twofold.server.config import EnvironmentSettings
from twofold.server.environment.environment import Environment, prepare

if TYPE_CHECKING:
    from tests.support.packed_interpreter import Packed

pytest_plugins = ["tests.support.packed_interpreter"]

PROGRAM = """
import ctypes, json, os, ssl, sys, sysconfig, zlib
import packed_module
print(json.dumps({
    "prefix": sys.prefix,
    "version": "%d.%d" % sys.version_info[:2],
    "stdlib": os.__file__,
    "sysconfig": sysconfig.get_config_var("prefix"),
    "answer": packed_module.ANSWER,
    "module": open(packed_module.__file__).read(),
    "maps": open("/proc/self/maps").read(),
    "path": sys.path,
}))
"""


@pytest.fixture(scope="module")
def unpacked(
    packed_environment: Packed, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Environment, list[str]]:
    cache = tmp_path_factory.mktemp("cache of environments")
    done: list[str] = []
    settings = EnvironmentSettings(cache_dir=str(cache))
    runtime = Runtime(env_path=str(packed_environment.archive), python_version=packed_environment.version)
    return prepare(runtime, settings, lambda what, done_bytes, total: done.append(what)), done


def test_runs_from_the_copy_and_from_nothing_else(
    packed_environment: Packed, unpacked: tuple[Environment, list[str]]
) -> None:
    environment, done = unpacked
    command = [str(environment.python), "-c", PROGRAM]
    ran = subprocess.run(command, env=dict(environment.variables), capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    prefix = str(environment.prefix)
    assert not packed_environment.original.exists()
    assert environment.version == found["version"] == packed_environment.version
    assert found["prefix"] == prefix and found["stdlib"].startswith(prefix)
    assert found["answer"] == 42
    mapped = {line.split(maxsplit=5)[5] for line in found["maps"].splitlines() if len(line.split()) > 5}
    assert not [path for path in mapped if path.startswith(str(packed_environment.original))]
    if packed_environment.donor != Path("/usr"):  # where the C library is mapped from, too
        assert not [path for path in mapped if path.startswith(str(packed_environment.donor))]
    assert {"hashing", "unpacking", "adjusting paths"} <= set(done)


def test_conda_unpack_wrote_the_final_path(
    packed_environment: Packed, unpacked: tuple[Environment, list[str]]
) -> None:
    environment, _ = unpacked
    command = [str(environment.python), "-c", PROGRAM]
    ran = subprocess.run(command, env=dict(environment.variables), capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert found["module"].split(" at ")[1].strip() == str(environment.prefix)
    assert found["sysconfig"] == str(environment.prefix)
    assert str(packed_environment.original) not in ran.stdout


def test_is_activated(unpacked: tuple[Environment, list[str]]) -> None:
    environment, _ = unpacked
    variables = environment.variables
    assert variables["CONDA_PREFIX"] == str(environment.prefix)
    assert variables["PATH"].startswith(f"{environment.prefix}/bin:")
    assert variables["PACKED_HOME"] == f"{environment.prefix}/share"
    assert variables["PYTHONNOUSERSITE"] == "1"
    assert environment.name == "model-env"


def test_second_start_neither_reads_nor_unpacks(
    packed_environment: Packed, unpacked: tuple[Environment, list[str]]
) -> None:
    environment, _ = unpacked
    assert environment.prefix is not None
    settings = EnvironmentSettings(
        env=str(packed_environment.archive), cache_dir=str(environment.prefix.parent.parent)
    )
    done: list[str] = []
    again = prepare(None, settings, lambda what, done_bytes, total: done.append(what))
    assert (again.python, again.prefix) == (environment.python, environment.prefix)
    assert done == []


def test_another_python_than_promised(
    packed_environment: Packed, unpacked: tuple[Environment, list[str]]
) -> None:
    environment, _ = unpacked
    assert environment.prefix is not None
    settings = EnvironmentSettings(cache_dir=str(environment.prefix.parent.parent))
    runtime = Runtime(env_path=str(packed_environment.archive), python_version="3.99")
    with pytest.raises(EnvironmentFailure, match=f"asks for Python 3.99.* has {packed_environment.version}"):
        prepare(runtime, settings, lambda what, done, total: None)
