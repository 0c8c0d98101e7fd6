"""The variables of an activated environment, as `conda activate` sets them.

CONDA_PREFIX and PATH are set directly.  The scripts of etc/conda/activate.d need a shell, which is started
only if there are scripts.  No variable of the server's own Python may reach the model's interpreter.
Touches one short-lived process.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from twofold.errors import EnvironmentFailure
from twofold.process import one_shot

SCRIPT_TIMEOUT_S = 60.0  # for all scripts together
# These would point another interpreter to the server's libraries or prefix.
REMOVED = (
    "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "PYTHONPLATLIBDIR",
    "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT",
)  # fmt: skip
SHELL_VARIABLES = ("_", "SHLVL", "PWD", "OLDPWD")
DUMP = "import os; os.write(1, b'\\0'.join(name + b'=' + value for name, value in os.environb.items()))"
# The output of the scripts goes to standard error, so that it does not mix with the variables.  The names of
# this script's variables must not collide with theirs.
SCRIPT = """_twofold_python=$1 _twofold_dump=$2; shift 2
for _twofold_script; do . "$_twofold_script"; done >&2
exec "$_twofold_python" -ISc "$_twofold_dump"
"""


def isolated(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without the variables that configure the server's own interpreter."""
    return {name: value for name, value in environ.items() if name not in REMOVED} | {"PYTHONNOUSERSITE": "1"}


def activated(prefix: Path, python: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """All variables for processes that run in `prefix`. Raises EnvironmentFailure if a script fails."""
    variables = isolated(environ)
    variables["PATH"] = f"{prefix / 'bin'}{os.pathsep}{environ.get('PATH', os.defpath)}"
    if (prefix / "pyvenv.cfg").exists():
        return variables | {"VIRTUAL_ENV": str(prefix)}
    variables |= {"CONDA_PREFIX": str(prefix), "CONDA_DEFAULT_ENV": str(prefix), "CONDA_SHLVL": "1"}
    scripts = sorted(str(path) for path in (prefix / "etc/conda/activate.d").glob("*.sh"))
    return _after_scripts(scripts, python, variables) if scripts else variables


def _after_scripts(scripts: list[str], python: Path, variables: dict[str, str]) -> dict[str, str]:
    """`variables` after the scripts have run. Raises EnvironmentFailure."""
    shell = shutil.which("bash") or "/bin/sh"
    folder = str(Path(scripts[0]).parent)
    try:
        outcome = one_shot.run(
            [shell, "-c", SCRIPT, "activate", str(python), DUMP, *scripts], variables, SCRIPT_TIMEOUT_S
        )
    except OSError as error:
        message = f"cannot run {shell} for the activation scripts: {error.strerror}"
        raise EnvironmentFailure(message, "", folder) from None
    if outcome.code != 0:
        message = f"the activation scripts failed: the shell {outcome.complaint()}"
        raise EnvironmentFailure(message, "correct them in the environment", folder)
    pairs = (os.fsdecode(entry).partition("=") for entry in outcome.output.split(b"\0"))
    return {name: value for name, _, value in pairs if name not in SHELL_VARIABLES or name in variables}
