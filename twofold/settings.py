"""Reads settings from the settings file, environment variables and options; errors name the source.

A program declares its settings as fields of groups (frozen dataclasses that are `Checked`), the groups as
fields of its Config, and their external names in a `Catalogue`.  A setting has one name in three notations:
`port: 8080` in the settings file, PREFIX_PORT in the environment, `--port` on the command line.  One parser
reads all texts.  A setting whose default is a tuple takes several texts: a comma list, a YAML list, or a
repeated option.

A group with a value outside its limits cannot be constructed.  Touches the settings file, read only.
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
Given = tuple[str, object, str]  # name, unparsed value, source of the value

WORDS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "text"}


def apart(prefix: str, *patterns: str) -> re.Pattern[str]:
    """A pattern of NAME=VALUE for variables that begin with `prefix` but are not settings.

    It matches `patterns`, and the variables that Kubernetes sets for a Service named like the prefix.
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
    """Declare a setting as a field of a group; `low` and `high` are the inclusive limits of a number.

    `form` checks a text that is not empty: it returns the expected form, or "" if the text is valid.
    """
    limits = {"low": low, "high": high, "among": among, "form": form}
    return field(default=default, metadata={"help": meaning, **limits})


@dataclass(frozen=True, slots=True)
class Checked:
    """A group of settings. Raises ConfigError for a value outside its limits."""

    def __post_init__(self) -> None:
        for declared in fields(self):
            complaint = complain(declared, getattr(self, declared.name))
            if complaint:
                raise ConfigError(complaint, f"it means: {declared.metadata['help']}", declared.name)


class AnyConfig(Protocol):
    """A frozen dataclass with a field for each group, and perhaps more fields that are text."""

    @property
    def sources(self) -> Mapping[str, str]:
        """The source of each setting's value; a missing setting has its default."""


ConfigT = TypeVar("ConfigT", bound=AnyConfig)


@dataclass(frozen=True, slots=True)
class Catalogue(Generic[ConfigT]):
    """The settings of one program, and their external names."""

    config: type[ConfigT]
    prefix: str  # of the variables, with the underscore
    listing: str  # the command that lists all settings
    example: str  # a line of the settings file
    apart: re.Pattern[str]  # made by `apart`
    free: tuple[str, ...] = ()  # fields of the Config that take any text and belong to no group
    weaker: Mapping[str, str] = field(default_factory=dict)  # other variable -> setting that it sets

    def groups(self) -> dict[str, type[Checked]]:
        """The classes of the groups, by the name of the field of Config."""
        made: dict[str, Any] = {each.name: each.default_factory for each in fields(cast(Any, self.config))}
        return {
            name: each for name, each in made.items() if isinstance(each, type) and issubclass(each, Checked)
        }

    def declared(self) -> Iterator[tuple[str, Field[Any]]]:
        """(group, field) of every setting, in the order of the documentation."""
        for group, settings_class in self.groups().items():
            for declared in fields(settings_class):
                yield group, declared

    def load(
        self,
        file: Path | None,
        environ: Mapping[str, str],
        options: Mapping[str, object],
        others: Iterable[Given] = (),
    ) -> ConfigT:
        """Make the Config. Sources in rising priority: defaults, file, `environ`, `options`, `others`.

        The file is `file`, or else PREFIX_CONFIG.  An option that is None is not given.  Raises ConfigError,
        or UsageError for an option; both name the place of the fault.
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
        for group, declared in self.declared():
            value = getattr(getattr(config, group), declared.name)
            yield (
                declared.name,
                value,
                config.sources.get(declared.name, "default"),
                declared.metadata["help"],
            )

    def to_json(self, config: ConfigT) -> str:
        """The Config as text for `from_json` in another process."""
        values = {name: getattr(config, name) for name in self.free}
        return json.dumps(values | {name: value for name, value, _, _ in self.listed(config)})

    def from_json(self, text: str) -> ConfigT:
        """The Config of a result of `to_json`, without its sources. Raises ConfigError."""
        given = json.loads(text)
        values = {name: given[name] for name in self.free if name in given}
        for _, declared in self.declared():
            if declared.name in given:
                values[declared.name] = parse(declared, given[declared.name])
        return self._build(values, {})

    def find(self, name: str) -> Field[Any] | None:
        """The field of a setting; None if there is no setting of this name."""
        return next((declared for _, declared in self.declared() if declared.name == name), None)

    # ------------------------------------------------------------------ the three sources

    def _chosen_file(self, given: Path | None, environ: Mapping[str, str]) -> Path | None:
        """The settings file: `given`, or else PREFIX_CONFIG."""
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
        import yaml  # costs 15 ms and 3 MB, and most instances have no settings file

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
            return []  # only comments, or `---`
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError("not a mapping", example, f"{path}:{root.start_mark.line + 1}")
        return cast("Iterable[tuple[yaml.Node, yaml.Node]]", root.value)

    def _written(self, name: str, value: yaml.Node, path: Path, line: int) -> Iterator[Given]:
        """The unparsed text: all sources have one parser, and YAML must not convert it (`no`, 0x1F90)."""
        import yaml

        declared = self.find(name)
        items = [value]
        if isinstance(value, yaml.SequenceNode) and declared is not None and type(declared.default) is tuple:
            items = value.value
            if not items:
                yield name, (), f"{path}:{line}"
        for item in items:
            if not isinstance(item, yaml.ScalarNode):
                what = f"{name} must be one plain value"
                raise ConfigError(what, "settings are not nested", f"{path}:{line}")
            # An item of a list has a line of its own; any other value is in the line of its key.
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
        """(values, sources) by setting; a later source replaces the value of an earlier one.

        Raises ConfigError, or UsageError for an option; both name the place of the fault.
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
        """Parse and check `given` for the setting `name`. Raises ConfigError or UsageError."""
        if name in self.free:
            return str(given)
        declared = self.find(name)
        if declared is None:
            raise fault(place, f"there is no setting {name!r}", self._suggestion(name))
        value = parse(declared, given)
        complaint = complain(declared, value)
        if complaint:
            raise fault(place, complaint, f"it means: {declared.metadata['help']}")
        return cast(Value, value)

    def _suggestion(self, name: str) -> str:
        from difflib import get_close_matches

        near = get_close_matches(name, [declared.name for _, declared in self.declared()], 1)
        return f"did you mean {near[0]}?" if near else f"`{self.listing}` lists them all"


def from_options(options: Mapping[str, object]) -> Iterator[Given]:
    """The options that are not None; a list stands for a repeated option."""
    for name, given in options.items():
        for item in given if isinstance(given, list) else (given,):
            if item is not None:
                yield name, item, "--" + name.replace("_", "-")


def fault(place: str, message: str, remedy: str) -> TwofoldError:
    """The error to raise: UsageError if `place` is an option, else ConfigError."""
    kind = UsageError if place.startswith("--") else ConfigError
    return kind(message, remedy, place)


def parse(declared: Field[Any], given: object) -> object:
    """`given` as the setting's type; unchanged if that is impossible."""
    kind: object = type(declared.default)
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


def complain(declared: Field[Any], value: object) -> str:
    """The error of the value, or ""."""
    kind = type(declared.default)
    several = kind is tuple and isinstance(value, tuple)
    for item in cast("tuple[object, ...]", value) if several else (value,):
        wanted = _wanted(declared.metadata, str if several else kind, item)
        if wanted:
            return f"{declared.name} must be {wanted}, not {item!r}"
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
