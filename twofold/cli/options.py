"""Options of the command line, made from the settings of a catalogue.

Touches nothing.  Nothing of a setting is repeated in a command: its name, default, meaning and choices
come from the field that declares it.  Values arrive as text, or as None where an option was not given;
the catalogue parses them as it does those of the settings file and of the variables.
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
    """A keyword of a command; `default` is what typer.Option() or typer.Argument() made."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def config_file() -> inspect.Parameter:
    """The option --config, as the keyword `config_file`."""
    return parameter("config_file", str | None, CONFIG_FILE)


def of_settings(
    catalogue: Catalogue[Any], panels: Mapping[str, str], metavars: Mapping[str, str] | None = None
) -> Iterator[inspect.Parameter]:
    """An option for each setting of the groups in `panels`, under the title that stands there.

    `metavars`, by the setting's name, say what a value looks like where its type does not.
    """
    for group, known in catalogue.known():
        if group in panels:
            yield _option(known, panels[group], (metavars or {}).get(known.name, ""))


def sign(command: Callable[..., object], parameters: Iterable[inspect.Parameter]) -> None:
    """Give `command`, which takes keywords, the signature that typer reads its options from."""
    parameters = list(parameters)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}


def text(value: object) -> str:
    """A setting's value as a person would write it."""
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _option(known: Field[Any], panel: str, metavar: str) -> inspect.Parameter:
    flag = "--" + known.name.replace("_", "-")
    value: Any = known.default
    kind: Any = type(value)
    help_text = known.metadata["help"] + (f" (default {text(value)})" if value not in ("", ()) else "")
    shown = {"help": help_text, "rich_help_panel": panel, "show_default": False}
    if kind is bool:
        return parameter(known.name, bool | None, typer.Option(None, f"{flag}/--no-{flag[2:]}", **shown))
    metavar = "|".join(known.metadata["among"]) or metavar or METAVARS[kind]
    annotation = list[str] | None if kind is tuple else str | None
    return parameter(known.name, annotation, typer.Option(None, flag, metavar=metavar, **shown))
