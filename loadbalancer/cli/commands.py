"""The command line of `twofold balance`: every setting is an option, made from loadbalancer.config.

Nothing of a setting is repeated here, and what the load balancer needs is imported when it starts, so
that `--help` works whatever is broken.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from twofold.errors import ExitCode, TwofoldError, UsageError
from twofold.loadbalancer import config
from twofold.logs.console import say

if TYPE_CHECKING:
    from dataclasses import Field

PROGRAM = "twofold balance"
METAVARS = {int: "N", float: "NUMBER", str: "TEXT", tuple: "TEXT"}
METAVARS_BY_NAME = {
    "listen": "HOST:PORT",
    "upstream": "URL",
    "status": "HOST:PORT",
    "allow": "NETWORK",
    "trusted_proxies": "NETWORK",
}
PANELS = {
    "listen": "Clients",
    "pool": "Instances",
    "bandwidth": "Bandwidth and rates",
    "queue": "The queue",
    "timeouts": "Timeouts",
    "limits": "Limits",
    "access": "Who may come in",
    "control": "Watching and telling",
    "log": "Logs",
}
FILE = typer.Option(None, "--config", help="YAML file with settings.", metavar="FILE", show_default=False)
CHECK = typer.Option(
    False, "--check", help="Only check the settings, and show them as JSON.", show_default=False
)


def application(run: Callable[[config.Config, bool], int]) -> typer.Typer:
    """The command, which calls `run(settings, check)`."""

    def balance(config_file: str | None, check: bool, **given: object) -> int:
        file = None if config_file is None else Path(config_file)
        return run(config.load(file, os.environ, given), check)

    # typer reads a signature; this one is written by the settings.
    own = [_parameter("config_file", str | None, FILE), _parameter("check", bool, CHECK)]
    parameters = [*own, *(_option(group, known) for group, known in config.CATALOGUE.known())]
    balance.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    balance.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help="Balance requests over instances, within a bandwidth.")(balance)
    return app


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _option(group: str, known: Field[Any]) -> inspect.Parameter:
    """Values arrive as text: config.load parses them as it does those of the file and the variables."""
    flag = "--" + known.name.replace("_", "-")
    value: Any = known.default
    kind: Any = type(value)
    help_text = known.metadata["help"] + (f" (default {_text(value)})" if value not in ("", ()) else "")
    shown = {"help": help_text, "rich_help_panel": PANELS[group], "show_default": False}
    if kind is bool:
        return _parameter(known.name, bool | None, typer.Option(None, f"{flag}/--no-{flag[2:]}", **shown))
    metavar = "|".join(known.metadata["among"]) or METAVARS_BY_NAME.get(known.name, METAVARS[kind])
    annotation = list[str] | None if kind is tuple else str | None
    return _parameter(known.name, annotation, typer.Option(None, flag, metavar=metavar, **shown))


# ---------------------------------------------------------------------- what it does


def balance(settings: config.Config, check: bool) -> int:
    """Balance until told to stop, or with `check`, say what would be done."""
    from twofold.loadbalancer.supervision import startup_checks, supervisor
    from twofold.loadbalancer.supervision.resources import ChildEntries

    startup_checks.verify(settings)
    if check:
        startup_checks.load(ChildEntries())
        print(config.to_json(settings))
        return int(ExitCode.OK)
    return int(supervisor.start(settings, ChildEntries(), say))


def run(arguments: list[str]) -> int:
    """One call of `twofold balance`. Raises TwofoldError, and UsageError for an unknown option."""
    try:
        code = application(balance)(arguments, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except typer.Abort:  # what typer makes of a KeyboardInterrupt
        raise KeyboardInterrupt from None
    except Exception as error:
        # typer's complaints about a command line share no public class across its versions, but this method.
        if isinstance(error, TwofoldError) or not hasattr(error, "format_message"):
            raise
        raise UsageError(error.format_message(), f"`{PROGRAM} --help` lists what there is") from None
