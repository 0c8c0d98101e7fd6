"""The two installations that are compared: this checkout, and another commit in an environment of its own.

Touches bench/.work/cost/ only; reads the git repository.  The other environment takes its dependencies
from this one, by a path in a .pth file: both run the same versions.  Only the project itself is
installed from the other commit.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from bench.environments import Unavailable, execute
from bench.running import WORK
from bench.servers import PROJECT, TWOFOLD

ROOM = WORK / "cost"
SWITCH = "TWOFOLD_INTERPRETED"  # a variable that every commit understands
COMPILED, INTERPRETED = "compiled", "interpreted"
SHORT = 12  # digits of a commit in names

# Prints the file of the module that decides on the compiled form, and whether there is a fresh one.
PROBE = "import {load} as load; print(load.__file__); print(load.fresh())"


@dataclass(frozen=True)
class Layout:
    """How a commit names its packages; `mark` is a file that only such a commit has."""

    mark: str
    load: str  # the module that knows the compiled form
    build: str  # the module that makes it


LAYOUTS = (
    Layout("twofold/native/load.py", "twofold.native.load", "twofold.native.build"),
    Layout("loadbalancer/compiled.py", "loadbalancer.compiled", "loadbalancer.compiling"),
)


@dataclass(frozen=True)
class Installation:
    """One of the two; `form` is COMPILED or INTERPRETED."""

    name: str
    commit: str
    twofold: Path  # its console script
    form: str

    @property
    def variables(self) -> dict[str, str]:
        return {SWITCH: "1"} if self.form == INTERPRETED else {}


def layout_of(tree: Path) -> Layout | None:
    """None: the commit is older than the compiled form."""
    return next((one for one in LAYOUTS if (tree / one.mark).exists()), None)


def resolve(commit: str) -> str:
    """The full name; raises Unavailable where the repository has no such commit."""
    command = ["git", "-C", str(PROJECT), "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}"]
    try:
        return execute(command, commit).strip()
    except Unavailable as error:
        raise Unavailable(f"git knows no commit {commit!r} in {PROJECT}") from error


def described() -> str:
    """This checkout in words: its commit, and whether files were changed since."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", f"--abbrev={SHORT}"]
    return execute([*command, "--exclude=*"], "this").strip()


def environ() -> dict[str, str]:
    """Without what would make an environment find another one's packages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TWOFOLD_")}
    kept.pop("PYTHONPATH", None)
    kept.pop("PYTHONHOME", None)
    return kept


def this(interpreted: bool) -> Installation:
    """The checkout that this file belongs to; raises Unavailable where it is not what would run."""
    if not TWOFOLD.exists():
        raise Unavailable(f"{TWOFOLD} is missing: run scripts/install examples")
    layout = layout_of(PROJECT)
    assert layout is not None  # this file came with that layout
    where, fresh = probe(Path(sys.executable), layout)
    if not where.resolve().is_relative_to(PROJECT):
        raise Unavailable(f"{TWOFOLD} runs {where}, which is not of this checkout: run scripts/install")
    if not interpreted and not fresh:
        raise Unavailable("this checkout is not compiled: run scripts/compile, or compare with --interpreted")
    return Installation("this", described(), TWOFOLD, INTERPRETED if interpreted else COMPILED)


def other(commit: str, interpreted: bool) -> Installation:
    """`commit`, a full name, is installed and compiled unless it was before; raises Unavailable."""
    folder = ROOM / commit[:SHORT]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another comparison may be installing the same commit
        install(folder, commit)
        if not interpreted:
            compile_once(folder, commit)
    form = INTERPRETED if interpreted else COMPILED
    return Installation(commit[:SHORT], commit, folder / "env" / "bin" / "twofold", form)


def install(folder: Path, commit: str) -> None:
    """Source tree and environment; a stamp remembers of which interpreter and dependencies they are."""
    stamp, wanted = folder / "made-from", "\n".join([commit, sys.version, *packages()])
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {commit[:SHORT]} beside this checkout ...", flush=True)
    stamp.unlink(missing_ok=True)
    tree, env = folder / "tree", folder / "env"
    for old in (tree, env):
        shutil.rmtree(old, ignore_errors=True)
    archive = folder / "tree.tar"
    execute(["git", "-C", str(PROJECT), "archive", "-o", str(archive), commit], commit)
    shutil.unpack_archive(archive, tree)
    archive.unlink()
    execute([sys.executable, "-m", "venv", "--without-pip", str(env)], commit)
    # A plain path: the .pth files in that folder, this checkout's editable finder among them, stay unread.
    Path(sysconfig.get_path("purelib", vars={"base": str(env)}), "dependencies.pth").write_text(
        "\n".join(packages()) + "\n"
    )
    pip = [str(python_of(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Installed without the compiled form: compile_once() makes it, for every layout in the same way.
    execute(
        [*pip, "--no-deps", "--no-build-isolation", "--ignore-installed", "--no-index", str(tree)],
        commit,
        {**environ(), SWITCH: "1"},
        folder,
    )
    stamp.write_text(wanted)


def compile_once(folder: Path, commit: str) -> None:
    """Raises Unavailable where the commit has no compiled form, or it cannot be made."""
    layout = layout_of(folder / "tree")
    if layout is None:
        raise Unavailable(f"{commit[:SHORT]} cannot be compiled: compare with --interpreted")
    if not probe(python_of(folder), layout)[1]:
        print(f"compiling {commit[:SHORT]}: about a minute ...", flush=True)
        execute([str(python_of(folder)), "-m", layout.build], commit, environ(), folder)
    where, fresh = probe(python_of(folder), layout)
    if not fresh or not where.is_relative_to(folder):
        raise Unavailable(f"the compiled form of {commit[:SHORT]} is missing; {where} was asked")


def probe(python: Path, layout: Layout) -> tuple[Path, bool]:
    """Where that environment's package lies, and whether its compiled form is of its own source."""
    ROOM.mkdir(parents=True, exist_ok=True)  # an empty place: `python -c` looks for packages there first
    said = execute([str(python), "-c", PROBE.format(load=layout.load)], python.name, environ(), ROOM)
    where, fresh = said.splitlines()
    return Path(where), fresh == "True"


def python_of(folder: Path) -> Path:
    return folder / "env" / "bin" / "python"


def packages() -> list[str]:
    """The folders that hold this environment's dependencies."""
    return list(dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")))
