"""`python -m twofold.native.build`: compiles the hot path with mypyc.

Touches a temporary folder and load.folder().  Requires mypy and setuptools (the package's extra `compile`), a
C compiler, and the headers of the interpreter.  If one is missing, nothing is changed and the hot path is
interpreted.
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

from twofold.native import load

# Types are checked by `make lint`, not here.
MYPY = ("--config-file=", "--ignore-missing-imports", "--cache-dir=/dev/null")
REMEDY = "needed: pip install 'mypy>=1.15' 'setuptools>=77', a C compiler, Python.h (Debian: gcc python3-dev)"
LAST_LINES = 12  # of the compiler's output
FAILED = 1


def compile_into(target: Path) -> None:
    """Compile into `target`. Raises the exceptions of mypyc and the C compiler, which also print much."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    modules = [
        f"{package.replace('.', '/')}/{name}.py" for package, names in load.HOT.items() for name in names
    ]
    target = target.resolve()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        # In a copy, so that mypy does not check neighbouring files. Symlinks become folders.
        shutil.copytree(load.PACKAGE, "twofold", ignore=shutil.ignore_patterns("_native", "__pycache__"))
        source = load.source(Path("twofold"))
        extensions = mypycify(
            [*MYPY, *modules], opt_level="2", debug_level="0", target_dir="c", group_name=load.GROUP
        )
        project = Distribution({"name": "twofold", "ext_modules": extensions})
        command = project.get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(target), "o"
        command.ensure_finalized()
        command.run()
    (target / load.MARK).write_text(source)


def compile_anew(native: Path) -> int:
    """Compile in a child process, whose output is shown only if it fails; return the exit code."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=native) as room:
        made, old = Path(room, "new"), Path(room, "old")
        command = [sys.executable, "-m", "twofold.native.build", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip().splitlines()
            return failed("\n".join(said[-LAST_LINES:]))
        if load.folder().exists():
            load.folder().rename(old)
        made.rename(load.folder())
    print(f"compiled in {time.monotonic() - began:.0f} s: {load.folder()}")
    return 0


def failed(why: str) -> int:
    print(f"{why}\nbuild: failed, the load balancer runs interpreted; {REMEDY}", file=sys.stderr)
    return FAILED


def main() -> int:
    native = load.folder().parent
    try:
        native.mkdir(exist_ok=True)
        with (native / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be compiling
            return 0 if load.fresh() else compile_anew(native)
    except OSError as error:
        return failed(str(error))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compile_into(Path(sys.argv[1]))
    else:
        sys.exit(main())
