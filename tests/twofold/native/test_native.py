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

from tests.support.loadbalancer.balancer_process import balance
from tests.support.loadbalancer.http_clients import once, post
from tests.support.loadbalancer.running_balancer import run_scenario
from tests.support.loadbalancer.scripted_instance import Origin, echo
from twofold.loadbalancer.cli.balance_ctl import AdminClient
from twofold.native import build, load

ROOT = Path(__file__).parents[3]
WHERE = """
from twofold.native import load
load.prefer()
from twofold.loadbalancer.balancing import instance_pool
from twofold.logs import records
print(load.used(), instance_pool.__file__, records.__file__)
"""
needs_compiled = pytest.mark.skipif(not load.fresh(), reason="nothing is compiled here: scripts/compile")


def imported(root: Path, **environ: str) -> list[str]:
    """Whether it says that it is compiled; and the files of two hot modules, as a new process finds them."""
    done = subprocess.run(
        [sys.executable, "-c", WHERE], cwd=root, env={**os.environ, **environ}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def copy(folder: Path) -> Path:
    """The whole package, its links become folders."""
    shutil.copytree(load.PACKAGE, folder / "twofold", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@needs_compiled
def test_processes_run_what_is_compiled() -> None:
    said, *files = imported(ROOT)
    assert said == "True" and all(file.endswith(".so") for file in files)


@needs_compiled
def test_a_variable_switches_the_compiled_form_off() -> None:
    said, *files = imported(ROOT, TWOFOLD_INTERPRETED="1")
    assert said == "False" and all(file.endswith(".py") for file in files)


@needs_compiled
def test_a_library_that_cannot_be_loaded_is_not_used(tmp_path: Path) -> None:
    root = copy(tmp_path)
    for library in root.glob("twofold/_native/*/twofold/*__mypyc.*"):
        library.write_bytes(b"")
    said, *files = imported(root)
    assert said == "False" and all(file.endswith(".py") for file in files)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    root = copy(tmp_path)
    shutil.rmtree(root / "twofold" / "_native", ignore_errors=True)
    (root / "twofold" / "_native").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "twofold.native.build"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == build.FAILED and "runs interpreted" in done.stderr


@needs_compiled
def test_the_two_forms_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    import twofold.loadbalancer.balancing.instance_pool  # in the tests' process it is interpreted

    assert twofold.loadbalancer.balancing.instance_pool.__file__.endswith(".py")
    before = list(twofold.loadbalancer.__path__)
    load.prefer()
    assert not load.used() and list(twofold.loadbalancer.__path__) == before


@needs_compiled
@pytest.mark.parametrize(
    "edited", ["balancing/instance_pool.py", "control/controller.py", "../wire/request_head.py"]
)
def test_an_edited_source_is_what_runs(edited: str, tmp_path: Path) -> None:
    root = copy(tmp_path)
    assert imported(root)[0] == "True"
    with (root / "twofold" / "loadbalancer" / edited).open("a") as file:
        file.write("\n")
    said, *files = imported(root)
    assert said == "False" and all(file.endswith(".py") for file in files)


def test_hot_modules_import_nothing_outside_the_digest() -> None:
    """Or a change there would not be noticed: the digest covers all but the instance."""
    for package, names in load.HOT.items():
        for name in names:
            path = ROOT / package.replace(".", "/") / f"{name}.py"
            assert "twofold.server" not in path.read_text(), path


@pytest.mark.timeout(300)
def test_without_a_compiler_nothing_changes(tmp_path: Path) -> None:
    root = copy(tmp_path)
    shutil.rmtree(root / "twofold" / "_native", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "twofold.native.build"],
        cwd=root, env={**os.environ, "CC": "/bin/false"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == build.FAILED
    assert "runs interpreted" in done.stderr and "C compiler" in done.stderr
    assert [path.name for path in (root / "twofold" / "_native").iterdir()] == ["lock"]
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
            found = await asyncio.to_thread(AdminClient(str(lb.folder / "admin.sock")).state)
            assert found["compiled"] is (form == "compiled")

    run_scenario(scenario())
