#!/usr/bin/env python3
"""Pack an environment for Twofold: `python conda/pack.py conda/py310.yaml` or `... --prefix FOLDER`.

Makes the conda environment that a file describes, with whichever of micromamba, mamba and conda is
installed, and packs it with conda-pack into NAME.tar.gz; an environment that exists is packed as it
is.  Prints the lines of runtime.yaml that name the archive.

Stands alone: the standard library, and conda-pack (`pip install conda-pack`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MAKERS = ("micromamba", "mamba", "conda")
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"
RUNTIME = """MODEL_ARTIFACT_VERSION: '3.0'
MODEL_DEPLOYMENT:
  INFERENCE_CONDA_ENV:
    INFERENCE_ENV_SLUG: {name}
    INFERENCE_ENV_TYPE: published
    INFERENCE_ENV_PATH: {path}
    INFERENCE_PYTHON_VERSION: '{version}'
"""


def make(description: Path, prefix: Path) -> None:
    """A conda environment in the new folder `prefix`."""
    maker = next((found for name in MAKERS if (found := shutil.which(name))), None)
    if maker is None:
        sys.exit(f"none of {', '.join(MAKERS)} is installed; one of them makes the environment")
    action = ["create", "-y"] if Path(maker).name == "micromamba" else ["env", "create"]
    command = [maker, *action, "-q", "-p", str(prefix)]
    # Packages of the user's own site folder must not satisfy what the file asks for.
    subprocess.run(
        [*command, "-f", str(description)], env={**os.environ, "PYTHONNOUSERSITE": "1"}, check=True
    )


def pack(prefix: Path, output: Path, level: int) -> None:
    """A conda-pack archive of `prefix`, complete or not there at all."""
    try:
        import conda_pack
    except ImportError:
        sys.exit("conda-pack is not installed: pip install conda-pack")
    try:
        conda_pack.pack(
            prefix=str(prefix),
            output=str(output),
            force=True,
            compress_level=level,
            ignore_missing_files=True,
        )
    except conda_pack.CondaPackException as error:
        sys.exit(f"conda-pack: {error}")
    output.chmod(0o644)  # conda-pack leaves it to its owner alone, and the server may be another user


def describe(name: str, prefix: Path, output: Path) -> str:
    """runtime.yaml for the archive, and its hash."""
    python = [str(prefix / "bin" / "python"), "-ISc", VERSION]
    version = subprocess.run(python, capture_output=True, text=True, check=True).stdout.strip()
    with output.open("rb") as archive:
        digest = hashlib.file_digest(archive, "sha256").hexdigest()
    size = output.stat().st_size / 1e6
    facts = f"# {output.name}: {size:.0f} MB, sha256 {digest}\n"
    return facts + RUNTIME.format(name=name, path=output.absolute(), version=version)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack an environment for Twofold.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", type=Path, help="an environment file, such as conda/py310.yaml")
    what.add_argument("--prefix", type=Path, help="an environment that exists")
    parser.add_argument("-o", "--output", type=Path, help="the archive; NAME.tar.gz unless said")
    parser.add_argument("--level", type=int, default=4, choices=range(10), help="compression, 0 to 9")
    asked = parser.parse_args()
    name = (asked.file or asked.prefix.absolute()).stem
    output = asked.output or Path(f"{name}.tar.gz")
    with tempfile.TemporaryDirectory(prefix="twofold-pack-") as folder:
        prefix = asked.prefix or Path(folder) / name
        if asked.file:
            make(asked.file, prefix)
        pack(prefix, output, asked.level)
        print(describe(name, prefix, output), end="")


if __name__ == "__main__":
    main()
