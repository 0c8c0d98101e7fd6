"""The variables of an activated environment: what `conda activate` would set, and nothing of ours.

CONDA_PREFIX and PATH are plain; the scripts of etc/conda/activate.d need a shell, which is started
only where there are any.  Nothing that belongs to the server's own Python may reach the model's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from twofold.errors import EnvironmentFailure
from twofold.process import one_shot

SCRIPT_TIMEOUT = 60.0  # seconds for all scripts together
# They would lead another interpreter to the server's libraries, or into the server's prefix.
FOREIGN = (
    "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "PYTHONPLATLIBDIR",
    "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT",
)  # fmt: skip
OF_THE_SHELL = ("_", "SHLVL", "PWD", "OLDPWD")
DUMP = "import os; os.write(1, b'\\0'.join(name + b'=' + value for name, value in os.environb.items()))"
# What the scripts print must not get between the variables, and their names must not collide with ours.
SCRIPT = """_twofold_python=$1 _twofold_dump=$2; shift 2
for _twofold_script; do . "$_twofold_script"; done >&2
exec "$_twofold_python" -ISc "$_twofold_dump"
"""


def isolated(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for another interpreter than the server's."""
    return {name: value for name, value in environ.items() if name not in FOREIGN} | {"PYTHONNOUSERSITE": "1"}


def activated(prefix: Path, python: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """All variables for processes that run in `prefix`. EnvironmentFailure if its scripts fail."""
    variables = isolated(environ)
    variables["PATH"] = f"{prefix / 'bin'}{os.pathsep}{environ.get('PATH', os.defpath)}"
    if (prefix / "pyvenv.cfg").exists():
        return variables | {"VIRTUAL_ENV": str(prefix)}
    variables |= {"CONDA_PREFIX": str(prefix), "CONDA_DEFAULT_ENV": str(prefix), "CONDA_SHLVL": "1"}
    scripts = sorted(str(path) for path in (prefix / "etc/conda/activate.d").glob("*.sh"))
    return _after(scripts, python, variables) if scripts else variables


def _after(scripts: list[str], python: Path, variables: dict[str, str]) -> dict[str, str]:
    """`variables` as the scripts leave them."""
    shell = shutil.which("bash") or "/bin/sh"
    place = str(Path(scripts[0]).parent)
    try:
        outcome = one_shot.run(
            [shell, "-c", SCRIPT, "activate", str(python), DUMP, *scripts], variables, SCRIPT_TIMEOUT
        )
    except OSError as error:
        message = f"cannot run {shell} for the activation scripts: {error.strerror}"
        raise EnvironmentFailure(message, "", place) from None
    if outcome.code != 0:
        message = f"the activation scripts failed: the shell {outcome.complaint()}"
        raise EnvironmentFailure(message, "correct them in the environment", place)
    pairs = (os.fsdecode(entry).partition("=") for entry in outcome.output.split(b"\0"))
    return {name: value for name, _, value in pairs if name not in OF_THE_SHELL or name in variables}
