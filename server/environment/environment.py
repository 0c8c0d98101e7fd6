"""The model's environment: which interpreter runs the replicas, and with which variables.

The `env` setting or runtime.yaml names an interpreter, an unpacked folder, or a conda-pack archive, which is
unpacked once into the cache.  If neither names one, the default environment is used: the interpreter of
`default_python`, or else the server's own.

Touches the cache folder and short-lived processes; changes nothing in this process.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from twofold.errors import EnvironmentFailure, ResourceError
from twofold.process import one_shot
from twofold.server.archive.cache import Cache
from twofold.server.artifact.artifact import Runtime
from twofold.server.config import EnvironmentSettings, cache_folder
from twofold.server.environment import activation
from twofold.server.environment.archive_source import ArchiveProgress, archive, locate

OLDEST = (3, 7)  # the oldest Python that the replica runtime supports
PROBE_TIMEOUT_S = 60.0
UNPACK_TIMEOUT_S = 1800.0  # for conda-unpack, which reads every text file of the environment
SUFFIXES = (".gz", ".bz2", ".xz", ".tgz", ".tar", ".zip")
VERSION = "import sys; sys.stdout.write('.'.join(map(str, sys.version_info[:3])))"
NO_PYTHON = re.compile(r"import sys|version_info|-\w*[ISc]\b|invalid option|[Uu]sage:")


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter that runs. `variables` is the whole environment of its processes."""

    python: Path
    version: str  # "3.11"
    prefix: Path | None
    variables: Mapping[str, str]
    name: str


def prepare(runtime: Runtime | None, settings: EnvironmentSettings, progress: ArchiveProgress) -> Environment:
    """Find or make the environment. `progress(step, done, total)` counts bytes.

    Raises EnvironmentFailure if that fails, or if its Python is not the version of runtime.yaml; raises
    ResourceError if the disk or the cache folder fails.
    """
    named = settings.env or (runtime.env_path if runtime else "")
    try:
        found = _named(named, settings, progress) if named else _default(settings)
    except PermissionError as error:
        path = str(error.filename)
        if path.startswith(str(cache_folder(settings))):
            raise ResourceError("may not be used as a cache", "choose another cache_dir", path) from None
        remedy = "check the permissions, also of the folders above it"
        raise EnvironmentFailure("may not be read", remedy, path) from None
    _compare(found, runtime)
    return found


def _default(settings: EnvironmentSettings) -> Environment:
    if settings.default_python:
        return _interpreter(settings.default_python, "default", "--default-python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # The server's own interpreter finds the model's libraries with the server's variables.
    return Environment(Path(sys.executable), version, None, dict(os.environ), "default")


def _named(named: str, settings: EnvironmentSettings, progress: ArchiveProgress) -> Environment:
    location = locate(named, settings.oci_root)
    if location.local is None:
        cache = Cache(cache_folder(settings) / "environments")
        return _folder(_unpacked(named, settings, cache, progress), _stem(named))
    if location.local.is_dir():
        return _folder(location.local, location.local.name)
    if os.sep not in named and not location.local.exists():
        return _interpreter(named, named)
    if _is_program(location.local):
        return _interpreter(str(location.local), location.local.name)
    cache = Cache(cache_folder(settings) / "environments")
    return _folder(_unpacked(named, settings, cache, progress), _stem(named))


def _is_program(file: Path) -> bool:
    """Whether `file` is an ELF executable or a script. An archive may have the x bit, too."""
    try:
        with file.open("rb") as content:
            start = content.read(4)
    except OSError:
        return False
    return os.access(file, os.X_OK) and (start == b"\x7fELF" or start.startswith(b"#!"))


def _stem(named: str) -> str:
    path = Path(named)
    while path.suffix in SUFFIXES:
        path = path.with_suffix("")
    return path.name


# ---------------------------------------------------------------------- an interpreter, a folder


def _interpreter(named: str, name: str, setting: str = "") -> Environment:
    """The interpreter `named`. `setting`: the option that names it, for errors. Raises EnvironmentFailure."""
    found = shutil.which(Path(named).expanduser())
    if found is None and setting:
        remedy = "name a Python that is on the PATH, or the path of one"
        raise EnvironmentFailure(f"{named} is no interpreter that can be run", remedy, setting)
    if found is None:
        raise EnvironmentFailure(
            f"{named} is neither an archive, a folder nor an interpreter that can be run",
            "check --env or runtime.yaml",
        )
    # Links are not resolved: the python of a virtual environment is a link, and finds its prefix by its path.
    python = Path(found).absolute()
    prefix = python.parent.parent
    if (prefix / "conda-meta").is_dir() or (prefix / "pyvenv.cfg").exists():
        return _folder(prefix, name, python)
    variables = activation.isolated(os.environ)
    return Environment(python, _version(python, variables, setting), None, variables, name)


def _folder(prefix: Path, name: str, python: Path | None = None) -> Environment:
    python = python or prefix / "bin" / "python"
    if not python.exists():
        raise EnvironmentFailure(
            f"{prefix} has no bin/python", "name the folder of a whole environment", name
        )
    variables = activation.activated(prefix, python, os.environ)
    return Environment(python, _version(python, variables), prefix, variables, name)


def _version(python: Path, variables: Mapping[str, str], setting: str = "") -> str:
    """The version, as "3.11". Raises EnvironmentFailure if `python` does not run or is too old."""
    try:
        outcome = one_shot.run([str(python), "-ISc", VERSION], variables, PROBE_TIMEOUT_S)
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot run {python}: {error.strerror}",
            "is it made for this machine, and of the same architecture?",
            setting,
        ) from None
    numbers = outcome.output.decode("ascii", "replace").strip().split(".")
    if outcome.code != 0 or not all(number.isdigit() for number in numbers):
        # Another program than Python complains about these options; that complaint would only confuse.
        how = outcome.end() if NO_PYTHON.search(outcome.errors) else outcome.complaint()
        remedy = "name a Python interpreter" if setting else "repair or rebuild the environment"
        raise EnvironmentFailure(f"{python} does not work as a Python: it {how}", remedy, setting)
    if tuple(map(int, numbers[:2])) < OLDEST:
        message = f"{python} is Python {'.'.join(numbers)}"
        raise EnvironmentFailure(message, "3.7 is the oldest that can serve", setting)
    return ".".join(numbers[:2])


def _compare(found: Environment, runtime: Runtime | None) -> None:
    wanted = runtime.python_version if runtime else ""
    if wanted and wanted.split(".")[:2] != found.version.split("."):
        raise EnvironmentFailure(
            f"runtime.yaml asks for Python {wanted}, but the environment {found.name} has {found.version}",
            "correct INFERENCE_PYTHON_VERSION, or name another environment with --env",
            str(found.python),
        )


# ---------------------------------------------------------------------- an archive


def _unpacked(named: str, settings: EnvironmentSettings, cache: Cache, progress: ArchiveProgress) -> Path:
    location = locate(named, settings.oci_root)
    waiting = partial(progress, "waiting for another start, which unpacks it", 0, 0)
    with archive(location, cache_folder(settings), cache.ready, progress) as (digest, file):
        fill = partial(_unpack, file, named, progress)
        return cache.make(digest, fill, partial(_finish, progress=progress), waiting)


def _unpack(file: Path | None, named: str, progress: ArchiveProgress, folder: Path) -> None:
    from twofold.server.archive.extraction_root import BadArchive
    from twofold.server.archive.unpack import unpack  # loads tarfile and zipfile

    if file is None:
        raise EnvironmentFailure(f"{named} vanished from the cache while it was looked up", "start again")
    try:
        unpack(file, folder, partial(progress, "unpacking"))
    except BadArchive as error:
        raise EnvironmentFailure(
            f"cannot unpack {named}: {error}", "make it again with conda-pack, as .tar.gz"
        ) from None
    if not (folder / "bin" / "python").exists():
        raise EnvironmentFailure(f"{named} holds no bin/python", "is it a conda-pack archive?")


def _finish(prefix: Path, lock: int, progress: ArchiveProgress) -> None:
    """Run conda-unpack in the final folder; it writes the folder's path into the environment's files."""
    script = prefix / "bin" / "conda-unpack"
    if not script.exists():
        return  # packed for a fixed prefix, or relocatable
    progress("adjusting paths", 0, 0)
    variables = activation.isolated(os.environ)
    # Run by the environment's own python: the script's first line relies on PATH.
    command = [str(prefix / "bin" / "python"), "-sE", str(script)]
    try:
        outcome = one_shot.run(command, variables, UNPACK_TIMEOUT_S, lock=lock)
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot run the archive's python: {error.strerror}", "is it for this machine?"
        ) from None
    if outcome.code != 0:
        raise EnvironmentFailure(
            f"conda-unpack {outcome.complaint()}", "make the archive again with conda-pack"
        )
