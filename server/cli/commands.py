"""The command line: `twofold serve`, `check`, `settings`.

Every setting is an option, made from the fields of server.config; nothing of a setting is repeated
here.  What a command needs is imported when it runs, so that `twofold serve` starts fast and
`--help` works whatever is broken.
"""

from __future__ import annotations

import inspect
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from twofold import __version__
from twofold.errors import ExitCode, UsageError
from twofold.native import load
from twofold.server import config
from twofold.server.cli import display

if TYPE_CHECKING:
    from dataclasses import Field

METAVARS = {int: "N", float: "NUMBER", str: "TEXT"}
PANELS = {
    "http": "Connections",
    "replicas": "Replicas",
    "environment": "The model's environment",
    "log": "Logs",
}
EVERY = tuple(PANELS)
FOR_CHECK = ("replicas", "environment")

ARTIFACT = typer.Argument("", help="Folder or zip with score.py.", metavar="ARTIFACT", show_default=False)
FILE = typer.Option(None, "--config", help="YAML file with settings.", metavar="FILE", show_default=False)

app = typer.Typer(
    name="twofold",
    help="Serves a model's predict() over HTTP.",
    epilog="`twofold balance` puts one address in front of several instances, and `twofold balance-ctl` "
    "speaks to it; each has a --help of its own.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        form = "compiled" if load.fresh() else "interpreted"
        print(f"twofold {__version__} (Python {platform.python_version()}, hot path {form})")
        raise typer.Exit(0)


@app.callback()
def options_of_all(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
    ),
) -> None:
    """Serves a model's predict() over HTTP."""


def command(name: str, groups: tuple[str, ...]) -> Callable[[Callable[[config.Config], int]], None]:
    """Register a function of a Config as a command whose options are the settings of `groups`."""

    def register(run: Callable[[config.Config], int]) -> None:
        def called(artifact: str, config_file: str | None, **given: object) -> int:
            file = None if config_file is None else Path(config_file)
            return run(config.load(artifact, file, os.environ, given))

        # typer reads a signature; this one is written by the settings.
        own = [_parameter("artifact", str, ARTIFACT), _parameter("config_file", str | None, FILE)]
        settings = (_option(group, known) for group, known in config.known_settings() if group in groups)
        parameters = [*own, *settings]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        called.__doc__ = run.__doc__
        app.command(name)(called)

    return register


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _text(value: config.Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _option(group: str, known: Field[Any]) -> inspect.Parameter:
    """Values arrive as text: config.load parses them as it does those of the file and the variables."""
    flag = "--" + known.name.replace("_", "-")
    switch = isinstance(known.default, bool)
    value: Any = known.default
    help_text = known.metadata["help"] + (f" (default {_text(value)})" if value != "" else "")
    shown = {"help": help_text, "rich_help_panel": PANELS[group], "show_default": False}
    if switch:
        return _parameter(known.name, bool | None, typer.Option(None, f"{flag}/--no-{flag[2:]}", **shown))
    metavar = "|".join(known.metadata["among"]) or METAVARS[type(known.default)]
    return _parameter(known.name, str | None, typer.Option(None, flag, metavar=metavar, **shown))


# ---------------------------------------------------------------------- commands


@command("serve", EVERY)
def serve(settings: config.Config) -> int:
    """Serve ARTIFACT until told to stop."""
    _need_artifact(settings)
    from twofold.server.artifact import artifact
    from twofold.server.environment import environment
    from twofold.server.supervision import supervisor
    from twofold.server.validation import check as checking

    announce = display.Announcer(display.stderr())
    try:
        opened = artifact.opened(settings.artifact, settings.cache_folder(), settings.replicas.sample)
        checking.require(opened, lambda message: announce("note", message=message))
        prepared = environment.prepare(opened.runtime, settings.environment, announce.unpacking)
        return supervisor.run(settings, prepared, opened, announce)
    finally:
        announce.close()


@command("check", FOR_CHECK)
def check(settings: config.Config) -> int:
    """Try ARTIFACT without serving it; the exit code says what is wrong."""
    _need_artifact(settings)
    from twofold.server.validation import check as checking

    announce = display.Announcer(display.stderr())
    try:
        code: ExitCode = checking.run(settings, display.verdicts(sys.stdout), announce.unpacking)
    finally:
        announce.close()
    display.verdict(code, sys.stdout)
    return code


@command("settings", EVERY)
def show_settings(settings: config.Config) -> int:
    """Show every setting, its value, and where that comes from."""
    rows = ((name, _text(value), *others) for name, value, *others in config.settings(settings))
    display.table(("setting", "value", "from", "meaning"), rows, sys.stdout)
    return 0


def _need_artifact(settings: config.Config) -> None:
    if not settings.artifact:
        raise UsageError("no artifact is named", "name a folder or zip with score.py", "ARTIFACT")
