"""One virtual environment per peer, made from its pinned requirements file and kept under bench/.peers/.

Touches bench/.peers/ only, and the package index through pip.  The requirements files are complete
freezes, hence `--no-deps`: what is measured is what is written there.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent
PEERS = BENCH / "peers"
ENVIRONMENTS = BENCH / ".peers"
INSTALL_SECONDS = 900


class Unavailable(Exception):
    """A peer (or tool) cannot be used here; the message says why, and goes into the report."""


def python_of(name: str) -> Path:
    return ENVIRONMENTS / name / "bin" / "python"


def prepare(name: str) -> Path:
    """The interpreter of that peer's environment, made first when missing or made from other pins."""
    requirements = PEERS / name / "requirements.txt"
    folder = ENVIRONMENTS / name
    stamp = folder / "made-from"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python_of(name)
    print(f"making the environment of {name} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    execute([sys.executable, "-m", "venv", str(folder)], name)
    pip = [str(python_of(name)), "-m", "pip", "install", "-q", "--no-deps", "-r", str(requirements)]
    execute(pip, name)
    stamp.write_text(wanted)
    return python_of(name)


def pins(name: str) -> dict[str, str]:
    """Package -> version, from the requirements file."""
    lines = (PEERS / name / "requirements.txt").read_text().split()
    return dict(line.split("==", 1) for line in lines if "==" in line)


def execute(
    command: list[str], name: str, environ: dict[str, str] | None = None, cwd: Path | None = None
) -> str:
    """What the command prints; raises Unavailable, with its last line, where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, env=environ, cwd=cwd
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"environment of {name}: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"environment of {name}: {' '.join(command[1:4])} failed: {last}")
    return done.stdout
