"""The model artifact: a folder, or a zip of one, with score.py, runtime.yaml and the model's files.

    score.py       load_model() and predict(data, model=load_model())
    runtime.yaml   names the environment and its Python version; may be missing
    sample.json    a request to try the model with; may be missing

A zip may hold all of it inside one folder, as it comes out when somebody zips the folder itself.
Nothing of the artifact is executed here.  Writes below the cache folder, and only for a zip.
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
NOISE = {"__MACOSX"}  # what Finder adds beside the zipped folder
NOTHING = {"", "~", "null", "none"}
ENVIRONMENT_KEYS = ("MODEL_DEPLOYMENT", "INFERENCE_CONDA_ENV")
# What is read of runtime.yaml, and where it must stand to be read.
PLACES: dict[str, tuple[str, ...]] = {
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
    """What runtime.yaml says about serving; "" where it says nothing."""

    env_path: str = ""
    python_version: str = ""  # "3.10", or "3.10.13"
    slug: str = ""
    env_type: str = ""
    format: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """`archive` is the zip it was unpacked from; `remarks` are about keys of runtime.yaml that do nothing."""

    path: Path
    name: str
    runtime: Runtime | None = None
    sample: Path | None = None
    archive: Path | None = None
    remarks: tuple[Diagnostic, ...] = ()

    def holds_sample(self) -> bool:
        """The sample request is the artifact's own, and not one that a setting names."""
        return self.sample == self.path / SAMPLE


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
    document = _document(folder / RUNTIME)
    return Artifact(
        path=folder,
        name=place.name if place.is_dir() else place.stem,
        runtime=_runtime(document, folder / RUNTIME),
        sample=request if request.is_file() else None,
        archive=None if place.is_dir() else place,
        remarks=tuple(_misplaced(document)),
    )


def _unpacked(archive: Path, cache_dir: Path) -> Path:
    """The folder with the content of the zip, or the only folder in it."""
    import hashlib
    import zipfile

    from twofold.server.archive.extraction import BadArchive
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
    """`folder`, or the one folder in it. Also asked before anything is kept: a useless zip leaves nothing."""
    inside = [path for path in folder.iterdir() if path.name not in NOISE]
    only = inside[0] if len(inside) == 1 else folder
    found = next((place for place in (folder, only) if (place / SCORE).is_file()), None)
    if found is None:
        remedy = "it must be at the top of the zip, or in its only folder"
        raise ArtifactError("has no score.py", remedy, str(archive))
    return found


# ---------------------------------------------------------------------- runtime.yaml


def _document(file: Path) -> Mapping[str, object]:
    """The content of runtime.yaml; {} if there is no such file, or nothing in it."""
    if not file.exists():
        return {}
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
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise ArtifactError("is not a mapping", "it starts with MODEL_ARTIFACT_VERSION: '3.0'", place)
    return document


def _runtime(document: Mapping[str, object], file: Path) -> Runtime | None:
    """None without the part about deployment: then the default environment serves."""
    section: object = document
    for key in ENVIRONMENT_KEYS:
        section = section.get(key, "") if isinstance(section, Mapping) else None
        if section is None or isinstance(section, list):
            remedy = f"write it as {' > '.join(ENVIRONMENT_KEYS)}"
            raise ArtifactError(f"{key} is not where it should be", remedy, str(file))
        if not isinstance(section, Mapping) and section.lower() in NOTHING:
            return None
    return _read_section(section, document, file)


def _misplaced(document: Mapping[str, object]) -> Iterator[Diagnostic]:
    """A warning for each key that would mean something in another place, or if it were spelt right."""
    waiting: list[tuple[tuple[str, ...], Mapping[str, object]]] = [((), document)]
    seen: set[int] = set()  # an alias in YAML leads to the same section again
    while waiting:
        path, section = waiting.pop()
        if id(section) in seen:
            continue
        seen.add(id(section))
        yield from (diagnostic for key in section for diagnostic in _judge(key, path))
        waiting += [((*path, key), value) for key, value in section.items() if isinstance(value, Mapping)]


def _judge(key: str, path: tuple[str, ...]) -> Iterator[Diagnostic]:
    from difflib import get_close_matches

    right = PLACES.get(key)
    if right is not None and right != path:
        where = f"below {' > '.join(right)}" if right else "at the top, not indented"
        yield Diagnostic("warning", RUNTIME, f"{key} is in the wrong place, and ignored", f"write it {where}")
    elif right is None and key.startswith("INFERENCE_"):
        near = get_close_matches(key, PLACES, 1)
        remedy = f"did you mean {near[0]}?" if near else "remove it"
        yield Diagnostic("warning", RUNTIME, f"{key} means nothing here, and is ignored", remedy)


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
