"""`python -m loadbalancer.compiling`: machine code for the hot path, by mypyc.

Touches a temporary folder and that of `compiled`.  It needs mypy and setuptools (the extra `compile` of
the package), a C compiler, and the headers of the interpreter.  Where something is missing nothing is
changed, and the load balancer runs interpreted.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loadbalancer import compiled

# Types have been checked by those who wrote them; here they only have to be understood.
MYPY = ("--config-file=", "--ignore-missing-imports", "--cache-dir=/dev/null")
REMEDY = "needed: pip install 'mypy>=1.15' 'setuptools>=66', a C compiler, Python.h (Debian: gcc python3-dev)"
LAST_LINES = 12  # of what a compiler says
FAILED = 1


def compile_into(target: Path) -> None:
    """Raises whatever keeps mypyc, or the C compiler, from it; both print much."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    modules = [f"{package}/{name}.py" for package, names in compiled.HOT.items() for name in names]
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        for package in compiled.HOT:  # mypy would take whatever else lies beside them for ours
            shutil.copytree(compiled.ROOT / package, package, ignore=shutil.ignore_patterns("_native"))
        source = compiled.source(Path(scratch))
        extensions = mypycify([*MYPY, *modules], opt_level="2", debug_level="0", target_dir="c")
        project = Distribution({"name": "twofold", "ext_modules": extensions})
        command = project.get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(target), "o"
        command.ensure_finalized()
        command.run()
    (target / compiled.MARK).write_text(source)


def compile_anew(native: Path) -> int:
    """In a process of its own, whose output is shown only when that fails; the exit code."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=native) as room:
        made, old = Path(room, "new"), Path(room, "old")
        command = [sys.executable, "-m", "loadbalancer.compiling", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip().splitlines()
            return failed("\n".join(said[-LAST_LINES:]))
        if compiled.folder().exists():
            compiled.folder().rename(old)
        made.rename(compiled.folder())
    print(f"compiled in {time.monotonic() - began:.0f} s: {compiled.folder()}")
    return 0


def failed(why: str) -> int:
    print(f"{why}\ncompiling: failed, the load balancer runs interpreted; {REMEDY}", file=sys.stderr)
    return FAILED


def main() -> int:
    native = compiled.folder().parent
    try:
        native.mkdir(exist_ok=True)
        with (native / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # somebody else may be about it
            return 0 if compiled.fresh() else compile_anew(native)
    except OSError as error:
        return failed(str(error))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compile_into(Path(sys.argv[1]))
    else:
        sys.exit(main())
