"""The model's environment: which interpreter runs the replicas, and with which variables.

What is named, by the `env` setting or by runtime.yaml, is an interpreter, an unpacked folder, or a
conda-pack archive, which is unpacked once into the cache.  Where nothing is named it is the default
environment: the server's own interpreter, unless `default_python` says another.

Writes below the cache folder and starts short-lived processes; changes nothing in this one.
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
from twofold.server.environment.archive_source import Progress, archive, locate

OLDEST = (3, 7)  # that the replica runtime supports
PROBE_TIMEOUT = 60.0
UNPACK_TIMEOUT = 1800.0  # seconds for conda-unpack, which reads every text file of the environment
SUFFIXES = (".gz", ".bz2", ".xz", ".tgz", ".tar", ".zip")
VERSION = "import sys; sys.stdout.write('.'.join(map(str, sys.version_info[:3])))"
NO_PYTHON = re.compile(r"import sys|version_info|-\w*[ISc]\b|invalid option|[Uu]sage:")


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter that was found to run. `variables` are all that its processes get."""

    python: Path
    version: str  # "3.11"
    prefix: Path | None
    variables: Mapping[str, str]
    name: str


def prepare(runtime: Runtime | None, settings: EnvironmentSettings, progress: Progress) -> Environment:
    """Find or make the environment. `progress(what, done, total)` counts bytes.

    EnvironmentFailure when that is impossible or its Python is not the one that runtime.yaml promises;
    ResourceError when the disk or the cache folder is at fault.
    """
    named = settings.env or (runtime.env_path if runtime else "")
    try:
        found = _named(named, settings, progress) if named else _default(settings)
    except PermissionError as error:
        place = str(error.filename)
        if place.startswith(str(cache_folder(settings))):
            raise ResourceError("may not be used as a cache", "choose another cache_dir", place) from None
        remedy = "check the permissions, also of the folders above it"
        raise EnvironmentFailure("may not be read", remedy, place) from None
    _compare(found, runtime)
    return found


def _default(settings: EnvironmentSettings) -> Environment:
    if settings.default_python:
        return _interpreter(settings.default_python, "default", "--default-python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # The server's own interpreter: what finds its libraries finds the model's.
    return Environment(Path(sys.executable), version, None, dict(os.environ), "default")


def _named(named: str, settings: EnvironmentSettings, progress: Progress) -> Environment:
    place = locate(named, settings.oci_root)
    if place.local is None:
        cache = Cache(cache_folder(settings) / "environments")
        return _folder(_unpacked(named, settings, cache, progress), _stem(named))
    if place.local.is_dir():
        return _folder(place.local, place.local.name)
    if os.sep not in named and not place.local.exists():
        return _interpreter(named, named)
    if _is_program(place.local):
        return _interpreter(str(place.local), place.local.name)
    cache = Cache(cache_folder(settings) / "environments")
    return _folder(_unpacked(named, settings, cache, progress), _stem(named))


def _is_program(file: Path) -> bool:
    """An executable, or a script such as a launcher of pyenv. Archives may carry the x bit, too."""
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
    """`setting` is the one that may name an interpreter only, as errors call it."""
    found = shutil.which(Path(named).expanduser())
    if found is None and setting:
        remedy = "name a Python that is on the PATH, or the path of one"
        raise EnvironmentFailure(f"{named} is no interpreter that can be run", remedy, setting)
    if found is None:
        raise EnvironmentFailure(
            f"{named} is neither an archive, a folder nor an interpreter that can be run",
            "check --env or runtime.yaml",
        )
    # Not resolved: the python of a virtual environment is a link, and what it is depends on its path.
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
    """Like "3.11"; EnvironmentFailure if it does not run, or is too old for the replica runtime."""
    try:
        outcome = one_shot.run([str(python), "-ISc", VERSION], variables, PROBE_TIMEOUT)
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot run {python}: {error.strerror}",
            "is it made for this machine, and of the same architecture?",
            setting,
        ) from None
    numbers = outcome.output.decode("ascii", "replace").strip().split(".")
    if outcome.code != 0 or not all(number.isdigit() for number in numbers):
        # A program that is no Python at all complains about our question, which is nobody's business.
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


def _unpacked(named: str, settings: EnvironmentSettings, cache: Cache, progress: Progress) -> Path:
    place = locate(named, settings.oci_root)
    waiting = partial(progress, "waiting for another start, which unpacks it", 0, 0)
    with archive(place, cache_folder(settings), cache.ready, progress) as (digest, file):
        fill = partial(_unpack, file, named, progress)
        return cache.make(digest, fill, partial(_finish, progress=progress), waiting)


def _unpack(file: Path | None, named: str, progress: Progress, folder: Path) -> None:
    from twofold.server.archive.extraction import BadArchive
    from twofold.server.archive.unpack import unpack  # which brings tarfile and zipfile

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


def _finish(prefix: Path, lock: int, progress: Progress) -> None:
    """Run conda-unpack in the folder's final place, whose path it writes into the environment's files."""
    script = prefix / "bin" / "conda-unpack"
    if not script.exists():
        return  # packed for a fixed prefix, or for none
    progress("adjusting paths", 0, 0)
    variables = activation.isolated(os.environ)
    # With the environment's own python: the script's first line relies on PATH.
    command = [str(prefix / "bin" / "python"), "-sE", str(script)]
    try:
        outcome = one_shot.run(command, variables, UNPACK_TIMEOUT, lock=lock)
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot run the archive's python: {error.strerror}", "is it for this machine?"
        ) from None
    if outcome.code != 0:
        raise EnvironmentFailure(
            f"conda-unpack {outcome.complaint()}", "make the archive again with conda-pack"
        )
