"""Fixtures that several test files share, and the form in which the hot path is tested.

With TWOFOLD_TESTS_COMPILED=1 the imports of all tests find the hot path's machine code (twofold.native.load).
It has to be decided before the first of them, hence for a whole run of pytest.  The marker `compiled`
selects the tests that are worth a second run in that form, see `_exercises_hot_code`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.instance_process import Instance, serve
from twofold.native import load

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
EXAMPLES = TESTS.parent / "examples"
COMPILED = os.environ.get("TWOFOLD_TESTS_COMPILED", "") not in ("", "0")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test file is imported."""
    if COMPILED:
        load.prefer()
        if not load.used():
            raise pytest.UsageError(
                "TWOFOLD_TESTS_COMPILED: nothing is compiled of this source: scripts/compile"
            )


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        interpreted = item.get_closest_marker("interpreted")
        if COMPILED and interpreted is not None:
            item.add_marker(pytest.mark.skip(reason=f"interpreted only: {interpreted.args[0]}"))
        if isinstance(item, pytest.Function) and _exercises_hot_code(item.path, item.module):
            item.add_marker(pytest.mark.compiled)


def _exercises_hot_code(path: Path, module: ModuleType) -> bool:
    """Whether a test file lies beside hot modules, in the tree of tests, and imports one of them.

    In the room of the half itself only by its name: there other tests read the shared memory, too.
    """
    room = next((room for room in load.HOT if path.parent == TESTS.joinpath(*_place(room))), "")
    if room in ("", "twofold.loadbalancer"):
        return path.stem.removeprefix("test_") in load.HOT.get(room, ())
    hot = {f"{room}.{name}" for room, names in load.HOT.items() for name in names}
    return any(
        getattr(value, "__module__", None) in hot or (isinstance(value, ModuleType) and value.__name__ in hot)
        for value in vars(module).values()
    )


def _place(package: str) -> list[str]:
    """Where the tests of a package are: those of twofold.loadbalancer.http in loadbalancer/http."""
    names = package.split(".")
    return names[1:] if names[1] in ("server", "loadbalancer") else names


@pytest.fixture(scope="session")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """examples/echo with two replicas."""
    with serve(EXAMPLES / "echo", tmp_path_factory.mktemp("echo"), "--replicas", "2") as instance:
        yield instance
