"""The model artifact: a folder, or a zip of one, with score.py, runtime.yaml and the model's files.

    score.py       load_model() and predict(data, model=load_model())
    runtime.yaml   the environment and its Python version; optional
    sample.json    a sample request; optional

A zip may hold these files at its top, or inside its only folder.  No code of the artifact runs here.
Touches the files of the artifact, and for a zip the cache folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from twofold.errors import ArtifactError, ConfigError, ResourceError
from twofold.server.archive.cache import Cache
from twofold.server.artifact.diagnostics import Diagnostic

SCORE, RUNTIME, SAMPLE = "score.py", "runtime.yaml", "sample.json"
MAX_YAML = 1 << 20
IGNORED_ENTRIES = {"__MACOSX"}  # Finder adds it beside the zipped folder
EMPTY_VALUES = {"", "~", "null", "none"}
ENVIRONMENT_KEYS = ("MODEL_DEPLOYMENT", "INFERENCE_CONDA_ENV")
# The keys of runtime.yaml that are read, each with the path of the section that must hold it.
SECTIONS: dict[str, tuple[str, ...]] = {
    "MODEL_ARTIFACT_VERSION": (),
    ENVIRONMENT_KEYS[0]: (),
    ENVIRONMENT_KEYS[1]: ENVIRONMENT_KEYS[:1],
    "INFERENCE_ENV_PATH": ENVIRONMENT_KEYS,
    "INFERENCE_ENV_SLUG": ENVIRONMENT_KEYS,
    "INFERENCE_ENV_TYPE": ENVIRONMENT_KEYS,
    "INFERENCE_PYTHON_VERSION": ENVIRONMENT_KEYS,
}
FORMAT = "3.0"


@dataclass(frozen=True, slots=True)
class Runtime:
    """The values of runtime.yaml that serving needs; "" for a missing one."""

    env_path: str = ""
    python_version: str = ""  # "3.10", or "3.10.13"
    slug: str = ""
    env_type: str = ""
    format: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact on disk. `archive`: its zip, if any; `remarks`: on ignored keys of runtime.yaml."""

    path: Path
    name: str
    runtime: Runtime | None = None
    sample: Path | None = None
    archive: Path | None = None
    remarks: tuple[Diagnostic, ...] = ()

    def holds_sample(self) -> bool:
        """Whether the sample request is a file of the artifact, and not one that a setting names."""
        return self.sample == self.path / SAMPLE


def opened(path: str, cache_dir: Path, sample: str = "") -> Artifact:
    """Open the artifact at `path`; a zip is unpacked under `cache_dir`, once for each content.

    `sample` is the path of a sample request; if empty, the artifact's sample.json is used if there is one.
    Raises ArtifactError if there is no valid artifact, ConfigError if `sample` does not exist, and
    ResourceError if the disk or the cache folder fails.
    """
    try:
        return _opened(path, cache_dir, sample)
    except PermissionError as error:
        path, remedy = str(error.filename), "check the permissions, also of the folders above it"
        if path.startswith(str(cache_dir)):
            raise ResourceError("may not be used as a cache", "choose another cache_dir", path) from None
        raise ArtifactError("may not be read", remedy, path) from None


def _opened(path: str, cache_dir: Path, sample: str) -> Artifact:
    named = Path(path).expanduser().absolute()
    if not named.exists():
        raise ArtifactError(f"there is no {path}", "name a folder or a zip with a score.py in it")
    folder = named if named.is_dir() else _unpacked(named, cache_dir)
    if not (folder / SCORE).is_file():
        below = sorted(named.glob(f"*/{SCORE}")) if named.is_dir() else []
        remedy = f"did you mean {below[0].parent}?" if below else "it must be at the top of the folder"
        raise ArtifactError("has no score.py", remedy, path)
    request = Path(sample).expanduser().absolute() if sample else folder / SAMPLE
    if sample and not request.is_file():
        raise ConfigError(f"there is no file {request}", "name an existing sample request, or none", "sample")
    document = _document(folder / RUNTIME)
    return Artifact(
        path=folder,
        name=named.name if named.is_dir() else named.stem,
        runtime=_runtime(document, folder / RUNTIME),
        sample=request if request.is_file() else None,
        archive=None if named.is_dir() else named,
        remarks=tuple(_misplaced(document)),
    )


def _unpacked(archive: Path, cache_dir: Path) -> Path:
    """Unpack the zip, and return the folder with score.py. Raises ArtifactError and ResourceError."""
    import hashlib
    import zipfile

    from twofold.server.archive.extraction_root import BadArchive
    from twofold.server.archive.unpack import unpack

    def fill(folder: Path) -> None:
        try:
            unpack(archive, folder, lambda done, total: None)
        except BadArchive as error:
            raise ArtifactError(f"cannot unpack it: {error}", "zip it again", str(archive)) from None
        _model_folder(folder, archive)

    try:
        with archive.open("rb") as content:
            if not zipfile.is_zipfile(content):
                inside = archive.name == SCORE or (archive.parent / SCORE).is_file()
                remedy = f"name the folder: {archive.parent}" if inside else "zip it again"
                raise ArtifactError("is neither a folder nor a whole zip", remedy, str(archive))
            content.seek(0)
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(
            f"cannot read it: {error.strerror}", "check its permissions", str(archive)
        ) from None
    cache = Cache(cache_dir / "artifacts")
    return _model_folder(cache.make(digest, fill), archive)


def _model_folder(folder: Path, archive: Path) -> Path:
    """`folder` or its only subfolder, whichever has score.py. Raises ArtifactError if neither has.

    Also called before the cache keeps the folder, so that a zip without score.py leaves nothing.
    """
    inside = [path for path in folder.iterdir() if path.name not in IGNORED_ENTRIES]
    only = inside[0] if len(inside) == 1 else folder
    found = next((path for path in (folder, only) if (path / SCORE).is_file()), None)
    if found is None:
        remedy = "it must be at the top of the zip, or in its only folder"
        raise ArtifactError("has no score.py", remedy, str(archive))
    return found


# ---------------------------------------------------------------------- runtime.yaml


def _document(file: Path) -> Mapping[str, object]:
    """The content of runtime.yaml; {} if the file is missing or empty. Raises ArtifactError."""
    if not file.exists():
        return {}
    import yaml  # costs 15 ms and 3 MB, and runtime.yaml is optional

    place = str(file)
    try:
        with file.open("rb") as content:
            text = content.read(MAX_YAML + 1)
        if len(text) > MAX_YAML:
            raise ArtifactError(f"is larger than {MAX_YAML >> 20} MB", "it only names the environment", place)
        # BaseLoader keeps scalars as text: 3.10 must not become the number 3.1.
        document = yaml.load(text, Loader=yaml.BaseLoader)
    except OSError as error:
        raise ArtifactError(f"cannot read it: {error.strerror}", "check its permissions", place) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ArtifactError(f"is not YAML: {error.problem}", "", f"{place}:{line}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"is not YAML: {error}", "", place) from None
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise ArtifactError("is not a mapping", "it starts with MODEL_ARTIFACT_VERSION: '3.0'", place)
    return document


def _runtime(document: Mapping[str, object], file: Path) -> Runtime | None:
    """The values of MODEL_DEPLOYMENT; None without that section, which means the default environment."""
    section: object = document
    for key in ENVIRONMENT_KEYS:
        section = section.get(key, "") if isinstance(section, Mapping) else None
        if section is None or isinstance(section, list):
            remedy = f"write it as {' > '.join(ENVIRONMENT_KEYS)}"
            raise ArtifactError(f"{key} is not where it should be", remedy, str(file))
        if not isinstance(section, Mapping) and section.lower() in EMPTY_VALUES:
            return None
    return _read_section(section, document, file)


def _misplaced(document: Mapping[str, object]) -> Iterator[Diagnostic]:
    """A warning for each known key in a wrong section, and for each INFERENCE_ key that is unknown."""
    pending: list[tuple[tuple[str, ...], Mapping[str, object]]] = [((), document)]
    seen: set[int] = set()  # a YAML alias may refer to an enclosing section
    while pending:
        path, section = pending.pop()
        if id(section) in seen:
            continue
        seen.add(id(section))
        yield from (diagnostic for key in section for diagnostic in _check_key(key, path))
        pending += [((*path, key), value) for key, value in section.items() if isinstance(value, Mapping)]


def _check_key(key: str, path: tuple[str, ...]) -> Iterator[Diagnostic]:
    from difflib import get_close_matches

    required = SECTIONS.get(key)
    if required is not None and required != path:
        where = f"below {' > '.join(required)}" if required else "at the top, not indented"
        yield Diagnostic("warning", RUNTIME, f"{key} is in the wrong place, and ignored", f"write it {where}")
    elif required is None and key.startswith("INFERENCE_"):
        near = get_close_matches(key, SECTIONS, 1)
        remedy = f"did you mean {near[0]}?" if near else "remove it"
        yield Diagnostic("warning", RUNTIME, f"{key} means nothing here, and is ignored", remedy)


def _read_section(section: object, document: Mapping[str, object], file: Path) -> Runtime:
    if not isinstance(section, Mapping):
        raise ArtifactError("INFERENCE_CONDA_ENV is not a mapping", "", str(file))
    path, slug, kind = (_text(section, f"INFERENCE_ENV_{name}", file) for name in ("PATH", "SLUG", "TYPE"))
    if path and "://" not in path:
        path = str(
            file.parent / Path(path).expanduser()
        )  # relative to the artifact, not to the working directory
    version = _version(_text(section, "INFERENCE_PYTHON_VERSION", file), file)
    return Runtime(path, version, slug, kind, _text(document, "MODEL_ARTIFACT_VERSION", file))


def _text(section: Mapping[str, object], key: str, file: Path) -> str:
    value = section.get(key, "")
    if not isinstance(value, str):
        raise ArtifactError(f"{key} is not a plain value", "", str(file))
    return "" if value.strip().lower() in EMPTY_VALUES else value.strip()


def _version(text: str, file: Path) -> str:
    if text and not re.fullmatch(r"3\.\d{1,2}(\.\d{1,3})?", text):
        raise ArtifactError(
            f"INFERENCE_PYTHON_VERSION is {text[:50]!r}", "write it like '3.10', in quotes", str(file)
        )
    return "3.10" if text == "3.1" else text  # a YAML writer may take 3.10 for a number
