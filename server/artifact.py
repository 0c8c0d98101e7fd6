"""The model artifact: a folder, or a zip of one, with score.py, runtime.yaml and the model's files.

    score.py       load_model() and predict(data, model=load_model())
    runtime.yaml   names the environment and its Python version; may be missing
    sample.json    a request to try the model with; may be missing

A zip may hold all of it inside one folder, as it comes out when somebody zips the folder itself.
Nothing of the artifact is executed here.  Writes below the cache folder, and only for a zip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.cache import Cache
from server.errors import ArtifactError, ConfigError, ResourceError

SCORE, RUNTIME, SAMPLE = "score.py", "runtime.yaml", "sample.json"
MAX_YAML = 1 << 20
NOISE = {"__MACOSX"}  # what Finder adds beside the zipped folder
NOTHING = {"", "~", "null", "none"}
ENVIRONMENT_KEYS = ("MODEL_DEPLOYMENT", "INFERENCE_CONDA_ENV")
FORMAT = "3.0"


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runtime.yaml says about serving; "" where it says nothing."""

    env_path: str = ""
    python_version: str = ""  # "3.10", or "3.10.13"
    slug: str = ""
    env_type: str = ""
    format: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    path: Path
    name: str
    runtime: Runtime | None = None
    sample: Path | None = None


def opened(path: str, cache_dir: Path, sample: str = "") -> Artifact:
    """The artifact at `path`; a zip is unpacked under `cache_dir`, once for each content.

    `sample` is the file of a sample request; without it, the artifact's own sample.json if there is one.
    ArtifactError when it is none, ResourceError when the disk or the cache folder is at fault.
    """
    try:
        return _opened(path, cache_dir, sample)
    except PermissionError as error:
        place, remedy = str(error.filename), "check the permissions, also of the folders above it"
        if place.startswith(str(cache_dir)):
            raise ResourceError("may not be used as a cache", "choose another cache_dir", place) from None
        raise ArtifactError("may not be read", remedy, place) from None


def _opened(path: str, cache_dir: Path, sample: str) -> Artifact:
    place = Path(path).expanduser().absolute()
    if not place.exists():
        raise ArtifactError(f"there is no {path}", "name a folder or a zip with a score.py in it")
    folder = place if place.is_dir() else _unpacked(place, cache_dir)
    if not (folder / SCORE).is_file():
        below = sorted(place.glob(f"*/{SCORE}")) if place.is_dir() else []
        remedy = f"did you mean {below[0].parent}?" if below else "it must be at the top of the folder"
        raise ArtifactError("has no score.py", remedy, path)
    request = Path(sample).expanduser().absolute() if sample else folder / SAMPLE
    if sample and not request.is_file():
        raise ConfigError(f"there is no file {request}", "name an existing sample request, or none", "sample")
    return Artifact(
        path=folder,
        name=place.name if place.is_dir() else place.stem,
        runtime=_runtime(folder / RUNTIME),
        sample=request if request.is_file() else None,
    )


def _unpacked(archive: Path, cache_dir: Path) -> Path:
    """The folder with the content of the zip, or the only folder in it."""
    import hashlib
    import zipfile

    from server.tree import BadArchive
    from server.unpack import unpack

    def fill(folder: Path) -> None:
        try:
            unpack(archive, folder, lambda done, total: None)
        except BadArchive as error:
            raise ArtifactError(f"cannot unpack it: {error}", "zip it again", str(archive)) from None
        _model_folder(folder, archive)

    try:
        with archive.open("rb") as content:
            if not zipfile.is_zipfile(content):
                raise ArtifactError("is neither a folder nor a whole zip", "zip it again", str(archive))
            content.seek(0)
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(
            f"cannot read it: {error.strerror}", "check its permissions", str(archive)
        ) from None
    cache = Cache(cache_dir / "artifacts")
    return _model_folder(cache.make(digest, fill), archive)


def _model_folder(folder: Path, archive: Path) -> Path:
    """`folder`, or the one folder in it. Also asked before anything is kept: a useless zip leaves nothing."""
    inside = [path for path in folder.iterdir() if path.name not in NOISE]
    only = inside[0] if len(inside) == 1 else folder
    found = next((place for place in (folder, only) if (place / SCORE).is_file()), None)
    if found is None:
        remedy = "it must be at the top of the zip, or in its only folder"
        raise ArtifactError("has no score.py", remedy, str(archive))
    return found


# ---------------------------------------------------------------------- runtime.yaml


def _runtime(file: Path) -> Runtime | None:
    """None without the file, or without the part about deployment: then the default environment serves."""
    if not file.exists():
        return None
    import yaml  # costs 15 ms and 3 MB, and an artifact may do without

    place = str(file)
    try:
        with file.open("rb") as content:
            text = content.read(MAX_YAML + 1)
        if len(text) > MAX_YAML:
            raise ArtifactError(f"is larger than {MAX_YAML >> 20} MB", "it only names the environment", place)
        # BaseLoader leaves scalars as they are written: 3.10 is not the number 3.1.
        document = yaml.load(text, Loader=yaml.BaseLoader)
    except OSError as error:
        raise ArtifactError(f"cannot read it: {error.strerror}", "check its permissions", place) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ArtifactError(f"is not YAML: {error.problem}", "", f"{place}:{line}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"is not YAML: {error}", "", place) from None
    if not isinstance(document, Mapping):
        raise ArtifactError("is not a mapping", "it starts with MODEL_ARTIFACT_VERSION: '3.0'", place)
    section: object = document
    for key in ENVIRONMENT_KEYS:
        section = section.get(key, "") if isinstance(section, Mapping) else None
        if section is None or isinstance(section, list):
            remedy = f"write it as {' > '.join(ENVIRONMENT_KEYS)}"
            raise ArtifactError(f"{key} is not where it should be", remedy, place)
        if not isinstance(section, Mapping) and section.lower() in NOTHING:
            return None
    return _read_section(section, document, file)


def _read_section(section: object, document: Mapping[str, object], file: Path) -> Runtime:
    if not isinstance(section, Mapping):
        raise ArtifactError("INFERENCE_CONDA_ENV is not a mapping", "", str(file))
    path, slug, kind = (_text(section, f"INFERENCE_ENV_{name}", file) for name in ("PATH", "SLUG", "TYPE"))
    if path and "://" not in path:
        path = str(file.parent / Path(path).expanduser())  # relative to the artifact, wherever we run
    version = _version(_text(section, "INFERENCE_PYTHON_VERSION", file), file)
    return Runtime(path, version, slug, kind, _text(document, "MODEL_ARTIFACT_VERSION", file))


def _text(section: Mapping[str, object], key: str, file: Path) -> str:
    value = section.get(key, "")
    if not isinstance(value, str):
        raise ArtifactError(f"{key} is not a plain value", "", str(file))
    return "" if value.strip().lower() in NOTHING else value.strip()


def _version(text: str, file: Path) -> str:
    if text and not re.fullmatch(r"3\.\d{1,2}(\.\d{1,3})?", text):
        raise ArtifactError(
            f"INFERENCE_PYTHON_VERSION is {text[:50]!r}", "write it like '3.10', in quotes", str(file)
        )
    return "3.10" if text == "3.1" else text  # 3.10 that somebody's YAML writer took for a number
