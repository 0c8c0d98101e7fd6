"""Options of the command line, made from the settings of a catalogue.

Touches nothing.  The name, default, meaning and choices of an option come from the field that declares the
setting.  A command gets the value as text, or None if the option is not given; the catalogue parses it with
the parser of all sources.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from twofold.settings import Catalogue

if TYPE_CHECKING:
    from dataclasses import Field

METAVARS: dict[type, str] = {int: "N", float: "NUMBER", str: "TEXT", tuple: "TEXT"}
CONFIG_FILE = typer.Option(
    None, "--config", help="YAML file with settings.", metavar="FILE", show_default=False
)


def parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A keyword parameter of a command; `default`: a result of typer.Option() or typer.Argument()."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def config_file() -> inspect.Parameter:
    """The option --config, as the keyword `config_file`."""
    return parameter("config_file", str | None, CONFIG_FILE)


def of_settings(
    catalogue: Catalogue[Any], panels: Mapping[str, str], metavars: Mapping[str, str] | None = None
) -> Iterator[inspect.Parameter]:
    """An option for each setting of the groups in `panels`; the value in `panels` is the panel's title.

    `metavars`: the placeholder of a value, by the setting's name; by default it depends on the type.
    """
    for group, declared in catalogue.declared():
        if group in panels:
            yield _option(declared, panels[group], (metavars or {}).get(declared.name, ""))


def sign(command: Callable[..., object], parameters: Iterable[inspect.Parameter]) -> None:
    """Set the signature of `command`, from which typer makes its options."""
    parameters = list(parameters)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}


def text(value: object) -> str:
    """A setting's value as text."""
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _option(declared: Field[Any], panel: str, metavar: str) -> inspect.Parameter:
    flag = "--" + declared.name.replace("_", "-")
    value: Any = declared.default
    kind: Any = type(value)
    help_text = declared.metadata["help"] + (f" (default {text(value)})" if value not in ("", ()) else "")
    shown = {"help": help_text, "rich_help_panel": panel, "show_default": False}
    if kind is bool:
        return parameter(declared.name, bool | None, typer.Option(None, f"{flag}/--no-{flag[2:]}", **shown))
    metavar = "|".join(declared.metadata["among"]) or metavar or METAVARS[kind]
    annotation = list[str] | None if kind is tuple else str | None
    return parameter(declared.name, annotation, typer.Option(None, flag, metavar=metavar, **shown))
