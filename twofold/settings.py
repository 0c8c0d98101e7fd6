"""How a setting gets its value: from the file, the variables or the options, with a place for complaints.

A program declares its settings as fields of groups (frozen dataclasses that are `Checked`), the groups
as fields of its Config, and in a `Catalogue` what they are called outside of it.  A setting has one name,
written three ways: `port: 8080` in the settings file, PREFIX_PORT in the environment, `--port` on the
command line.  All texts go through one parser.
A setting whose default is a tuple takes several texts: a comma list, a YAML list, a repeated option.

A value out of its limits cannot be constructed.  Reads the settings file and nothing else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from twofold.errors import ConfigError, TwofoldError, UsageError

if TYPE_CHECKING:
    from dataclasses import Field

    import yaml

Value = str | int | float | bool | tuple[str, ...]
Given = tuple[str, object, str]  # name, value as it came, place

WORDS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "text"}


def apart(prefix: str, *patterns: str) -> re.Pattern[str]:
    """NAME=VALUE of variables that begin with `prefix` and are no settings: `patterns`, and Kubernetes's.

    Kubernetes tells every container of each Service; of one that is called like the prefix, too.
    """
    services = (r"SERVICE_(HOST|PORT\w*)=.*", r"PORT_\d+_\w+=.*", r"PORT=\w+://.*")
    return re.compile(f"{prefix}({'|'.join((*patterns, *services))})", re.DOTALL)


def setting(
    default: Value,
    meaning: str,
    *,
    low: float = 0,
    high: float = math.inf,
    among: tuple[str, ...] = (),
    form: Callable[[str], str] | None = None,
) -> Any:
    """A field of a group; `low` and `high` are the limits of a number, both allowed.

    `form` says of a text that is not empty what it should be instead, or nothing.
    """
    limits = {"low": low, "high": high, "among": among, "form": form}
    return field(default=default, metadata={"help": meaning, **limits})


@dataclass(frozen=True, slots=True)
class Checked:
    """Refuses values that no source may give."""

    def __post_init__(self) -> None:
        for known in fields(self):
            complaint = complain(known, getattr(self, known.name))
            if complaint:
                raise ConfigError(complaint, f"it means: {known.metadata['help']}", known.name)


class AnyConfig(Protocol):
    """A frozen dataclass with a field for each group, and perhaps more fields that are text."""

    @property
    def sources(self) -> Mapping[str, str]:
        """Where the value of a setting came from; one that is missing here is the default."""


ConfigT = TypeVar("ConfigT", bound=AnyConfig)


@dataclass(frozen=True, slots=True)
class Catalogue(Generic[ConfigT]):
    """The settings of one program, and what they are called outside of it."""

    config: type[ConfigT]
    prefix: str  # of the variables, with its underscore
    listing: str  # the command that lists them all
    example: str  # of a line of the settings file
    apart: re.Pattern[str]  # made by `apart`
    free: tuple[str, ...] = ()  # fields of the Config that take any text and belong to no group
    weaker: Mapping[str, str] = field(default_factory=dict)  # another's variable: the setting it stands for

    def groups(self) -> dict[str, type[Checked]]:
        """The classes of the groups, by the Config's field."""
        made: dict[str, Any] = {each.name: each.default_factory for each in fields(cast(Any, self.config))}
        return {
            name: each for name, each in made.items() if isinstance(each, type) and issubclass(each, Checked)
        }

    def known(self) -> Iterator[tuple[str, Field[Any]]]:
        """(group, field) of every setting, in the order in which they are documented."""
        for group, settings_class in self.groups().items():
            for known in fields(settings_class):
                yield group, known

    def load(
        self,
        file: Path | None,
        environ: Mapping[str, str],
        options: Mapping[str, object],
        others: Iterable[Given] = (),
    ) -> ConfigT:
        """Defaults, then `file` (or PREFIX_CONFIG), `environ`, options that are not None, and `others`.

        Raises ConfigError or, for an option, UsageError, which name the place of what is wrong.
        """
        values, sources = self._collect(
            self._from_file(self._chosen_file(file, environ)),
            self._from_environ(environ),
            from_options(options),
            others,
        )
        return self._build(values, sources)

    def listed(self, config: ConfigT) -> Iterator[tuple[str, Value, str, str]]:
        """(name, value, source, meaning) of every setting."""
        for group, known in self.known():
            value = getattr(getattr(config, group), known.name)
            yield known.name, value, config.sources.get(known.name, "default"), known.metadata["help"]

    def to_json(self, config: ConfigT) -> str:
        """For another process of this program, which reads it with `from_json`."""
        values = {name: getattr(config, name) for name in self.free}
        return json.dumps(values | {name: value for name, value, _, _ in self.listed(config)})

    def from_json(self, text: str) -> ConfigT:
        """The Config that `to_json` was given, without its sources. Raises ConfigError."""
        given = json.loads(text)
        values = {name: given[name] for name in self.free if name in given}
        for _, known in self.known():
            if known.name in given:
                values[known.name] = parse(known, given[known.name])
        return self._build(values, {})

    def find(self, name: str) -> Field[Any] | None:
        return next((known for _, known in self.known() if known.name == name), None)

    # ------------------------------------------------------------------ the three sources

    def _chosen_file(self, given: Path | None, environ: Mapping[str, str]) -> Path | None:
        """The settings file: as given, otherwise PREFIX_CONFIG."""
        named = environ.get(f"{self.prefix}CONFIG", "")
        return given or (Path(named) if named else None)

    def _from_file(self, path: Path | None) -> Iterator[Given]:
        if path is None:
            return
        seen: dict[str, int] = {}
        for key, value in self._mapping(path):
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in seen:
                where = f"the first time in line {seen[name]}"
                raise ConfigError(f"{name} is set twice", where, f"{path}:{line}")
            seen[name] = line
            yield from self._written(name, value, path, line)

    def _mapping(self, path: Path) -> Iterable[tuple[yaml.Node, yaml.Node]]:
        import yaml  # costs 15 ms and 3 MB, and most instances have no file

        example = f"write lines like `{self.example}`"
        try:
            root = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            remedy = f"check --config, or {self.prefix}CONFIG"
            raise ConfigError(f"cannot read the settings file: {reason}", remedy, str(path)) from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ConfigError(f"not YAML: {error.problem}", example, f"{path}:{line}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"not YAML: {error}", example, str(path)) from None
        if root is None or root.tag.endswith(":null"):
            return []  # nothing but comments, or `---`
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError("not a mapping", example, f"{path}:{root.start_mark.line + 1}")
        return cast("Iterable[tuple[yaml.Node, yaml.Node]]", root.value)

    def _written(self, name: str, value: yaml.Node, path: Path, line: int) -> Iterator[Given]:
        """The text as it is written: one parser for all sources, and no YAML surprises (`no`, 0x1F90)."""
        import yaml

        known = self.find(name)
        items = [value]
        if isinstance(value, yaml.SequenceNode) and known is not None and type(known.default) is tuple:
            items = value.value
            if not items:
                yield name, (), f"{path}:{line}"
        for item in items:
            if not isinstance(item, yaml.ScalarNode):
                what = f"{name} must be one plain value"
                raise ConfigError(what, "settings are not nested", f"{path}:{line}")
            # Within a list each item has a line of its own; otherwise the key's is the one to look at.
            at = line if item is value else item.start_mark.line + 1
            yield name, "" if item.tag.endswith(":null") else item.value, f"{path}:{at}"

    def _from_environ(self, environ: Mapping[str, str]) -> Iterator[Given]:
        for variable, name in self.weaker.items():
            if variable in environ and f"{self.prefix}{name.upper()}" not in environ:
                yield name, environ[variable], variable
        for variable in sorted(environ):
            mine = variable.startswith(self.prefix) and variable != f"{self.prefix}CONFIG"
            if mine and not self.apart.fullmatch(f"{variable}={environ[variable]}"):
                yield variable[len(self.prefix) :].lower(), environ[variable], variable

    def _collect(self, *sources: Iterable[Given]) -> tuple[dict[str, Value], dict[str, str]]:
        """The values and where each came from; a later source replaces what an earlier one said.

        Raises ConfigError or, for an option, UsageError, which name the place of the fault.
        """
        values: dict[str, Value] = {}
        places: dict[str, str] = {}
        for source in sources:
            fresh: dict[str, Value] = {}
            for name, given, place in source:
                value, before = self._value(name, given, place), fresh.get(name)
                if isinstance(value, tuple) and isinstance(before, tuple):
                    value = before + value
                fresh[name] = value
                places[name] = places[name] if before and name in places else place
            values |= fresh
        return values, places

    def _build(self, values: Mapping[str, Value], sources: Mapping[str, str]) -> ConfigT:
        given: dict[str, Any] = {name: values[name] for name in self.free if name in values}
        for group, made in self.groups().items():
            names = (each.name for each in fields(made))
            given[group] = made(**{name: values[name] for name in names if name in values})
        return cast(Any, self.config)(sources=sources, **given)  # type: ignore[no-any-return]

    # ------------------------------------------------------------------ one value

    def _value(self, name: str, given: object, place: str) -> Value:
        """`given` as the type that `name` has, within its limits."""
        if name in self.free:
            return str(given)
        known = self.find(name)
        if known is None:
            raise fault(place, f"there is no setting {name!r}", self._suggestion(name))
        value = parse(known, given)
        complaint = complain(known, value)
        if complaint:
            raise fault(place, complaint, f"it means: {known.metadata['help']}")
        return cast(Value, value)

    def _suggestion(self, name: str) -> str:
        from difflib import get_close_matches

        near = get_close_matches(name, [known.name for _, known in self.known()], 1)
        return f"did you mean {near[0]}?" if near else f"`{self.listing}` lists them all"


def from_options(options: Mapping[str, object]) -> Iterator[Given]:
    """Options that were given; a list stands for an option that was repeated."""
    for name, given in options.items():
        for item in given if isinstance(given, list) else (given,):
            if item is not None:
                yield name, item, "--" + name.replace("_", "-")


def fault(place: str, message: str, remedy: str) -> TwofoldError:
    """An error of the kind that the place asks for, to be raised."""
    kind = UsageError if place.startswith("--") else ConfigError
    return kind(message, remedy, place)


def parse(known: Field[Any], given: object) -> object:
    """As the setting's type where that is possible, otherwise as it came."""
    kind: object = type(known.default)
    if kind is float and type(given) is int:
        return float(given)
    if not isinstance(given, str):
        return tuple(given) if kind is tuple and isinstance(given, list) else given
    try:
        if kind is tuple:
            return tuple(item for piece in given.split(",") if (item := piece.strip()))
        if kind is bool:
            return WORDS.get(given.strip().lower(), given)
        return int(given) if kind is int else float(given) if kind is float else given
    except ValueError:
        return given


def complain(known: Field[Any], value: object) -> str:
    """What is wrong with the value, or nothing."""
    kind = type(known.default)
    several = kind is tuple and isinstance(value, tuple)
    for item in cast("tuple[object, ...]", value) if several else (value,):
        wanted = _wanted(known.metadata, str if several else kind, item)
        if wanted:
            return f"{known.name} must be {wanted}, not {item!r}"
    return ""


def _wanted(limits: Mapping[str, Any], kind: type, value: object) -> str:
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        return KINDS[kind]
    if isinstance(value, str):
        if limits["among"] and value not in limits["among"]:
            return f"one of {', '.join(limits['among'])}"
        if "\0" in value:
            return "without NUL"
        return str(limits["form"](value)) if limits["form"] and value else ""
    if isinstance(value, int | float) and kind is not bool:
        if value < limits["low"]:
            return f"at least {limits['low']:g}"
        if value > limits["high"]:
            return f"at most {limits['high']:g}"
    return ""
