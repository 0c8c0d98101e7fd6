"""Every setting: its default, unit, limits and meaning, in one place; and how its value is found.

A setting has one name, written three ways: `port: 8080` in the settings file, TWOFOLD_PORT in the
environment, `--port` on the command line.  The later of these wins; the defaults come before all.
What a name means is said once, by the fields of the four groups below: the command line, its help
and the table of `twofold settings` are made from them.

A value out of its limits cannot be constructed.  Reads the settings file and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from server.errors import ConfigError, TwofoldError, UsageError

if TYPE_CHECKING:
    from dataclasses import Field

Value = str | int | float | bool

PREFIX = "TWOFOLD_"
# Read elsewhere: the file's own path, and what an embedded instance and its replicas are told.
NOT_SETTINGS = {"TWOFOLD_CONFIG", "TWOFOLD_GUEST_CONFIG", "TWOFOLD_REPLICA"}
# What Kubernetes tells every container of a Service that is called twofold.
KUBERNETES = re.compile(r"TWOFOLD_(SERVICE_(HOST|PORT\w*)=.*|PORT_\d+_\w+=.*|PORT=\w+://.*)", re.DOTALL)
WORDS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
EXAMPLE = "write lines like `port: 8080`"
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def setting(
    default: Value, meaning: str, *, low: float = 0, high: float = math.inf, among: tuple[str, ...] = ()
) -> Any:
    """A field of a group; `low` and `high` are the limits of a number, both allowed."""
    return field(default=default, metadata={"help": meaning, "low": low, "high": high, "among": among})


@dataclass(frozen=True, slots=True)
class _Checked:
    """Refuses values that no source may give."""

    def __post_init__(self) -> None:
        for known in fields(self):
            complaint = _complaint(known, getattr(self, known.name))
            if complaint:
                raise ConfigError(complaint, f"it means: {known.metadata['help']}", known.name)


@dataclass(frozen=True, slots=True)
class HttpSettings(_Checked):
    """The listening address, and what a connection may take and how long."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 or :: for every one")
    port: int = setting(8080, "port to listen on; 0 takes any free one", high=65535)
    fronts: int = setting(0, "front processes; 0 is one for every 8 replicas", high=31)
    backlog: int = setting(4096, "connections the kernel keeps waiting to be accepted", low=1, high=65535)
    max_body_mb: float = setting(10.0, "largest request body, in MB", low=0.001, high=1024)
    max_answer_mb: float = setting(20.0, "largest answer, in MB", low=0.001, high=1024)
    queue_size: int = setting(1024, "requests in the instance at once; beyond that, 503", low=1, high=2048)
    head_timeout: float = setting(10.0, "seconds in which a request's head must arrive", low=0.001)
    body_timeout: float = setting(30.0, "seconds of silence allowed within a body or an answer", low=0.001)
    idle_timeout: float = setting(75.0, "seconds that an idle connection stays open", low=0.001)
    drain_timeout: float = setting(30.0, "seconds that requests in flight may take when stopping")
    drain_grace: float = setting(0.2, "seconds between reporting unready and closing the port when stopping")
    root_ocid: str = setting("", "deployment id in /ID/predict; empty accepts any")


@dataclass(frozen=True, slots=True)
class ReplicaSettings(_Checked):
    """How many copies of the model, how they start, and what is done when they fail."""

    replicas: int = setting(0, "copies of the model; 0 is two for each OCPU, or one for each GPU", high=192)
    ocpus: float = setting(0.0, "OCPUs (two hardware threads each) to plan for; 0 measures them", high=2048)
    preload: str = setting(
        "none",
        "what replicas share by forking: nothing, imports, or the loaded model",
        among=("none", "imports", "model"),
    )
    replay: str = setting("once", "offer a request again when its replica died", among=("once", "never"))
    spare: int = setting(0, "loaded replicas standing by for a crash", high=64)
    # A completion counts microseconds in 32 bits, which is 4294 seconds.
    predict_timeout: float = setting(
        60.0, "seconds from a request's admission to its answer", low=0.001, high=3600
    )
    load_timeout: float = setting(600.0, "seconds that importing and loading the model may take", low=0.001)
    threads: int = setting(0, "threads of numerical libraries per replica; 0 shares out the cores", high=4096)
    sample: str = setting("", "path of a sample request; empty is the artifact's sample.json, if any")
    quarantine_seconds: float = setting(60.0, "seconds for which a body that killed two replicas is refused")
    quarantine_dir: str = setting("", "folder that keeps such bodies; empty is CACHE_DIR/quarantine")
    quarantine_mb: float = setting(64.0, "most MB of such bodies kept; 0 keeps none")


@dataclass(frozen=True, slots=True)
class EnvironmentSettings(_Checked):
    """The interpreter that runs the model."""

    env: str = setting(
        "", "conda-pack archive (path or URL), unpacked folder or interpreter; instead of runtime.yaml's"
    )
    default_python: str = setting("", "interpreter when nothing names one; empty is the server's own")
    cache_dir: str = setting("", "folder for unpacked environments; empty is ~/.cache/twofold")
    oci_root: str = setting("", "local folder that stands for oci://BUCKET@NAMESPACE/, as FOLDER/BUCKET/")


@dataclass(frozen=True, slots=True)
class LogSettings(_Checked):
    """The access log and the log of what the model prints."""

    log_dir: str = setting("", "folder for access.log and predict.log; empty is standard output")
    access_log: bool = setting(True, "one record for each request")
    predict_log: bool = setting(True, "one record for each line that the model prints or logs")
    log_max_mb: float = setting(100.0, "size in MB at which a log file is rotated", low=0.001)
    log_keep: int = setting(5, "rotated files kept of each log", high=1000)
    deployment_id: str = setting("", "`source` of the log records; empty is twofold")


GROUPS: dict[str, type[_Checked]] = {
    "http": HttpSettings,
    "replicas": ReplicaSettings,
    "environment": EnvironmentSettings,
    "log": LogSettings,
}


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that was asked for. `sources` says of each setting where its value came from."""

    artifact: str = ""
    http: HttpSettings = field(default_factory=HttpSettings)
    replicas: ReplicaSettings = field(default_factory=ReplicaSettings)
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    log: LogSettings = field(default_factory=LogSettings)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def cache_folder(self) -> Path:
        """Where unpacked artifacts and environments live; it may not exist yet."""
        return cache_folder(self.environment)

    def quarantine_folder(self) -> Path:
        """Where the bodies of requests that kill replicas are kept; it may not exist yet."""
        chosen = self.replicas.quarantine_dir
        return Path(chosen).expanduser() if chosen else self.cache_folder() / "quarantine"


def cache_folder(settings: EnvironmentSettings) -> Path:
    """`cache_dir`, or the place that the XDG base directory rules give."""
    if settings.cache_dir:
        return Path(settings.cache_dir).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The rules have a relative path ignored.
    return (cache if cache.is_absolute() else Path("~/.cache").expanduser()) / "twofold"


def known_settings() -> Iterator[tuple[str, Field[Any]]]:
    """(group, field) of every setting, in the order in which they are documented."""
    for group, settings_class in GROUPS.items():
        for known in fields(settings_class):
            yield group, known


def load(
    artifact: str, file: Path | None, environ: Mapping[str, str], options: Mapping[str, object]
) -> Config:
    """Defaults, then `file` (or TWOFOLD_CONFIG), then `environ`, then `options` that are not None.

    Raises ConfigError or, for an option, UsageError, which name the place of the unknown name or bad value.
    """
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    named = environ.get("TWOFOLD_CONFIG", "")
    file = file or (Path(named) if named else None)
    found = [*(_from_file(file) if file else ()), *_from_environ(environ), *_from_options(artifact, options)]
    for name, given, place in found:
        values[name] = _value(name, given, place)
        sources[name] = place
    return _build(values, sources)


def settings(config: Config) -> Iterator[tuple[str, Value, str, str]]:
    """(name, value, source, meaning) of every setting."""
    for group, known in known_settings():
        value = getattr(getattr(config, group), known.name)
        yield known.name, value, config.sources.get(known.name, "default"), known.metadata["help"]


def to_json(config: Config) -> str:
    """For a child process, which reads it with `from_json`."""
    return json.dumps({"artifact": config.artifact} | {name: value for name, value, _, _ in settings(config)})


def from_json(text: str) -> Config:
    """The Config that `to_json` was given, without its sources."""
    return _build(json.loads(text), {})


def _build(values: dict[str, Value], sources: Mapping[str, str]) -> Config:
    groups: dict[str, Any] = {
        group: settings_class(**{f.name: values[f.name] for f in fields(settings_class) if f.name in values})
        for group, settings_class in GROUPS.items()
    }
    return Config(artifact=str(values.get("artifact", "")), sources=sources, **groups)


# ---------------------------------------------------------------------- the three sources


def _from_file(path: Path) -> Iterator[tuple[str, str, str]]:
    import yaml  # costs 15 ms and 3 MB, and most instances have no file

    try:
        root = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read the settings file: {reason}", "check --config", str(path)) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"not YAML: {error.problem}", EXAMPLE, f"{path}:{line}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}", EXAMPLE, str(path)) from None
    if root is None or root.tag.endswith(":null"):
        return  # nothing but comments, or `---`
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("not a mapping", EXAMPLE, f"{path}:{root.start_mark.line + 1}")
    seen: dict[str, int] = {}
    for key, value in root.value:
        line = key.start_mark.line + 1
        place = f"{path}:{line}"
        name = str(key.value)
        if name in seen:
            raise ConfigError(f"{name} is set twice", f"the first time in line {seen[name]}", place)
        if not isinstance(value, yaml.ScalarNode):
            raise ConfigError(f"{name} must be one plain value", "settings are not nested", place)
        seen[name] = line
        # The text as it is written: one parser for all sources, and no YAML surprises (`no`, 0x1F90).
        yield name, "" if value.tag.endswith(":null") else value.value, place


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    # The deployment service's own variable for the number of model copies.
    if "WEB_CONCURRENCY" in environ and "TWOFOLD_REPLICAS" not in environ:
        yield "replicas", environ["WEB_CONCURRENCY"], "WEB_CONCURRENCY"
    for variable in sorted(environ):
        if KUBERNETES.fullmatch(f"{variable}={environ[variable]}"):
            continue
        if variable.startswith(PREFIX) and variable not in NOT_SETTINGS:
            yield variable[len(PREFIX) :].lower(), environ[variable], variable


def _from_options(artifact: str, options: Mapping[str, object]) -> Iterator[tuple[str, object, str]]:
    for name, given in options.items():
        if given is not None:
            yield name, given, "--" + name.replace("_", "-")
    if artifact:
        yield "artifact", artifact, "ARTIFACT"


# ---------------------------------------------------------------------- one value


def _value(name: str, given: object, place: str) -> Value:
    """`given` as the type that `name` has, within its limits."""
    if name == "artifact":
        return str(given)
    known = next((known for _, known in known_settings() if known.name == name), None)
    if known is None:
        raise _fault(place, f"there is no setting {name!r}", _suggestion(name))
    value = _parse(known, given)
    complaint = _complaint(known, value)
    if complaint:
        raise _fault(place, complaint, f"it means: {known.metadata['help']}")
    return cast(Value, value)


def _fault(place: str, message: str, remedy: str) -> TwofoldError:
    kind = UsageError if place.startswith("--") else ConfigError
    return kind(message, remedy, place)


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, [known.name for _, known in known_settings()], 1)
    return f"did you mean {near[0]}?" if near else "`twofold settings` lists them all"


def _parse(known: Field[Any], given: object) -> object:
    """As the setting's type where that is possible, otherwise as it came."""
    kind: object = type(known.default)
    if kind is float and type(given) is int:
        return float(given)
    if not isinstance(given, str):
        return given
    try:
        if kind is bool:
            return WORDS.get(given.strip().lower(), given)
        return int(given) if kind is int else float(given) if kind is float else given
    except ValueError:
        return given


def _complaint(known: Field[Any], value: object) -> str:
    """What is wrong with the value, or nothing."""
    limits, kind = known.metadata, type(known.default)
    wanted = ""
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        wanted = KINDS[kind]
    elif isinstance(value, str) and limits["among"] and value not in limits["among"]:
        wanted = f"one of {', '.join(limits['among'])}"
    elif isinstance(value, str) and "\0" in value:
        wanted = "without NUL"
    elif isinstance(value, int | float) and kind is not bool and value < limits["low"]:
        wanted = f"at least {limits['low']:g}"
    elif isinstance(value, int | float) and kind is not bool and value > limits["high"]:
        wanted = f"at most {limits['high']:g}"
    return f"{known.name} must be {wanted}, not {value!r}" if wanted else ""
