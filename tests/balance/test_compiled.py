"""The compiled form of the hot path: used where it is of this very source, and only there."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from balancer import balance
from caller import once, post
from origin import Origin, echo
from stage import act

from loadbalancer import compiled, compiling
from loadbalancer.ctl import Admin

ROOT = Path(__file__).parent.parent.parent
WHERE = """
from loadbalancer import compiled
compiled.prefer()
import loadbalancer.pool, server.log
print(compiled.used(), loadbalancer.pool.__file__, server.log.__file__)
"""
needs_compiled = pytest.mark.skipif(not compiled.fresh(), reason="nothing is compiled here: scripts/compile")


def imported(root: Path, **environ: str) -> list[str]:
    """Whether it says that it is compiled; and the files of two hot modules, as a new process finds them."""
    done = subprocess.run(
        [sys.executable, "-c", WHERE], cwd=root, env={**os.environ, **environ}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def copy(folder: Path) -> Path:
    for package in compiled.HOT:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@needs_compiled
def test_processes_run_what_is_compiled() -> None:
    said, *files = imported(ROOT)
    assert said == "True" and all(file.endswith(".so") for file in files)


@needs_compiled
def test_a_variable_leaves_it_alone() -> None:
    said, *files = imported(ROOT, TWOFOLD_INTERPRETED="1")
    assert said == "False" and all(file.endswith(".py") for file in files)


@needs_compiled
def test_what_cannot_be_loaded_is_left_alone(tmp_path: Path) -> None:
    root = copy(tmp_path)
    for library in root.glob("loadbalancer/_native/*/*__mypyc.*"):
        library.write_bytes(b"")
    said, *files = imported(root)
    assert said == "False" and all(file.endswith(".py") for file in files)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    root = copy(tmp_path)
    shutil.rmtree(root / "loadbalancer" / "_native", ignore_errors=True)
    (root / "loadbalancer" / "_native").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "loadbalancer.compiling"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == compiling.FAILED and "runs interpreted" in done.stderr


@needs_compiled
def test_the_two_forms_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    import loadbalancer.pool  # in the tests' process it is interpreted

    assert loadbalancer.pool.__file__.endswith(".py")
    before = list(loadbalancer.__path__)
    compiled.prefer()
    assert not compiled.used() and list(loadbalancer.__path__) == before


@needs_compiled
@pytest.mark.parametrize("edited", ["loadbalancer/pool.py", "loadbalancer/steward.py", "server/http1.py"])
def test_an_edited_source_is_what_runs(edited: str, tmp_path: Path) -> None:
    root = copy(tmp_path)
    assert imported(root)[0] == "True"
    with (root / edited).open("a") as file:
        file.write("\n")
    said, *files = imported(root)
    assert said == "False" and all(file.endswith(".py") for file in files)


def test_hot_modules_trust_no_other_of_the_server() -> None:
    """Or a change there would not be noticed."""
    paths = [ROOT / package / f"{name}.py" for package, names in compiled.HOT.items() for name in names]
    lines = {
        line for path in paths for line in path.read_text().splitlines() if line.startswith("from server")
    }
    for line in lines:
        source, _, names = line.removeprefix("from ").partition(" import ")
        found = [source.partition(".")[2]] if "." in source else names.split(", ")
        assert set(found) <= set(compiled.TRUSTED), line


@pytest.mark.timeout(300)
def test_without_a_compiler_nothing_changes(tmp_path: Path) -> None:
    root = copy(tmp_path)
    shutil.rmtree(root / "loadbalancer" / "_native", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "loadbalancer.compiling"],
        cwd=root, env={**os.environ, "CC": "/bin/false"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == compiling.FAILED
    assert "runs interpreted" in done.stderr and "C compiler" in done.stderr
    assert [path.name for path in (root / "loadbalancer" / "_native").iterdir()] == ["lock"]
    assert imported(root)[0] == "False"


@pytest.mark.parametrize("form", [pytest.param("compiled", marks=needs_compiled), "interpreted"])
def test_both_forms_serve_and_say_which_they_are(form: str, tmp_path: Path) -> None:
    environ = {"TWOFOLD_INTERPRETED": "1"} if form == "interpreted" else {}

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            origin = await Origin(echo).start()
            stack.push_async_callback(origin.stop)
            lb = await stack.enter_async_context(balance(tmp_path, instances=[origin.url], environ=environ))
            for _ in range(20):
                assert (await once(lb.port, post())).status == 200
            found = await asyncio.to_thread(Admin(str(lb.folder / "admin.sock")).state)
            assert found["compiled"] is (form == "compiled")

    act(scenario())
