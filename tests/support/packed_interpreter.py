"""A conda-pack archive of a real, relocatable interpreter, made from one that this machine has.

The prefix is what conda would make: bin/, lib/, conda-meta/, an activation script, and a module of its
own beside the standard library.  It is packed with conda/pack.py and then removed, so whatever works
afterwards works from the unpacked copy.  A test file asks for it by naming this module in its
`pytest_plugins`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACK = Path(__file__).parents[2] / "conda" / "pack.py"
SKIPPED = (
    "__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data",
    "site-packages", "dist-packages", "config-*", "*.a", "libpython*",
)  # fmt: skip
FACTS = """
import json, os, sys, sysconfig
ask = sysconfig.get_config_var
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "program": os.path.realpath(sys.executable),
    "stdlib": sysconfig.get_path("stdlib"),
    "prefix": sys.base_prefix,
    "shared": ask("Py_ENABLE_SHARED"),
    "library": os.path.join(ask("LIBDIR") or "", ask("INSTSONAME") or ""),
}))
"""
MODULE = "ANSWER = 42  # at {prefix}\n"
ACTIVATE = 'export PACKED_HOME="$CONDA_PREFIX/share"\necho activated\n'


@dataclass(frozen=True)
class Packed:
    archive: Path
    version: str
    original: Path  # where it was; it is gone
    donor: Path  # the interpreter that it was copied from, which is still there


@dataclass(frozen=True)
class Donor:
    version: str
    program: Path
    stdlib: Path
    prefix: Path
    library: Path | None  # where libpython is a library of its own


@pytest.fixture(scope="session")
def packed_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packed]:
    """An archive with an interpreter, of another version than ours where there is one."""
    donor = find_donor()
    if donor is None:
        pytest.skip(
            "no interpreter to copy: none on PATH or under pyenv that is static, or patchelf is missing"
        )
    folder = tmp_path_factory.mktemp("packed")
    prefix, archive = folder / "original prefix", folder / "model-env.tar.gz"
    build(prefix, donor)
    command = [sys.executable, str(PACK), "--prefix", str(prefix), "-o", str(archive), "--level", "1"]
    packed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert packed.returncode == 0, packed.stderr
    assert f"INFERENCE_PYTHON_VERSION: '{donor.version}'" in packed.stdout
    shutil.rmtree(prefix)
    yield Packed(archive, donor.version, prefix, donor.prefix)
    archive.unlink()


def find_donor() -> Donor | None:
    """The oldest supported interpreter that differs from ours, else any that can be copied."""
    found = [donor for program in candidates() if (donor := examine(program)) is not None]
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    # Not too old: the fixture is about packing, and 3.8 to 3.13 look alike here.
    found.sort(key=lambda donor: (donor.version == ours, tuple(map(int, donor.version.split(".")))))
    return found[0] if found else None


def candidates() -> Iterator[Path]:
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for folder in [root / "versions" / "*" / "bin", *map(Path, os.get_exec_path())]:
        for pattern in ("python3.[89]", "python3.1[0-4]"):
            yield from sorted(Path("/").glob(str((folder / pattern).relative_to("/"))))


def examine(program: Path) -> Donor | None:
    if program.read_bytes()[:4] != b"\x7fELF":
        return None  # a launcher, such as pyenv's
    asked = subprocess.run([str(program), "-IS", "-c", FACTS], capture_output=True, text=True, check=False)
    if asked.returncode:
        return None
    facts = json.loads(asked.stdout)
    library = Path(facts["library"]) if facts["shared"] and Path(facts["library"]).is_file() else None
    if Path(facts["prefix"]) == Path("/usr"):
        library = None  # Debian builds both, and its program is the static one
    if library is not None and shutil.which("patchelf", path=tools()) is None:
        return None
    return Donor(
        facts["version"], Path(facts["program"]), Path(facts["stdlib"]), Path(facts["prefix"]), library
    )


def tools() -> str:
    """PATH, with what was installed beside our own interpreter first."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


def build(prefix: Path, donor: Donor) -> None:
    """A prefix that needs nothing of its donor."""
    lib = prefix / "lib" / f"python{donor.version}"
    shutil.copytree(donor.stdlib, lib, symlinks=False, ignore=shutil.ignore_patterns(*SKIPPED))
    (prefix / "bin").mkdir()
    program = prefix / "bin" / f"python{donor.version}"
    shutil.copy(donor.program, program)
    for name in ("python3", "python"):
        (prefix / "bin" / name).symlink_to(program.name)
    if donor.library is not None:
        shutil.copy(donor.library, prefix / "lib" / donor.library.name)
        patch("$ORIGIN/../lib", [program])
        patch("$ORIGIN/../..", sorted((lib / "lib-dynload").glob("*.so")))
    write_texts(prefix, lib, donor)


def patch(path: str, files: list[Path]) -> None:
    subprocess.run(["patchelf", "--set-rpath", path, *map(str, files)], check=True, env={"PATH": tools()})


def write_texts(prefix: Path, lib: Path, donor: Donor) -> None:
    """What names the prefix, for conda-unpack to rewrite, and what conda leaves beside it."""
    for file in lib.glob("_sysconfigdata*.py"):
        file.write_text(file.read_text().replace(str(donor.prefix), str(prefix)))
    # Beside the standard library: Debian's Python looks for packages in places of its own.
    (lib / "packed_module.py").write_text(MODULE.format(prefix=prefix))
    (prefix / "conda-meta").mkdir()
    (prefix / "conda-meta" / "history").write_text("==> 2026-01-01 00:00:00 <==\n# cmd: made by a test\n")
    (prefix / "etc/conda/activate.d").mkdir(parents=True)
    (prefix / "etc/conda/activate.d" / "home.sh").write_text(ACTIVATE)
