"""The command line: `twofold serve`, `check`, `settings`.

Touches standard output.  Every setting is an option, made from the fields of server.config.  A command
imports its modules when it runs, so that `twofold serve` starts fast and `--help` works even if one of
them does not import.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from twofold import __version__
from twofold.cli import options, program
from twofold.errors import ExitCode, UsageError
from twofold.native import load
from twofold.server import config
from twofold.server.cli import display

PROGRAM = "twofold"
PANELS = {
    "http": "Connections",
    "replicas": "Replicas",
    "environment": "The model's environment",
    "log": "Logs",
}
FOR_CHECK = {group: PANELS[group] for group in ("replicas", "environment")}

ARTIFACT = typer.Argument("", help="Folder or zip with score.py.", metavar="ARTIFACT", show_default=False)

app = typer.Typer(
    name=PROGRAM,
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


def command(name: str, panels: dict[str, str]) -> Callable[[Callable[[config.Config], int]], None]:
    """Register a function of a Config as a command whose options are the settings in `panels`."""

    def register(run: Callable[[config.Config], int]) -> None:
        def called(artifact: str, config_file: str | None, **given: object) -> int:
            file = None if config_file is None else Path(config_file)
            return run(config.load(artifact, file, os.environ, given))

        own = (options.parameter("artifact", str, ARTIFACT), options.config_file())
        options.sign(called, (*own, *options.of_settings(config.CATALOGUE, panels)))
        called.__doc__ = run.__doc__
        app.command(name)(called)

    return register


# ---------------------------------------------------------------------- commands


@command("serve", PANELS)
def serve(settings: config.Config) -> int:
    """Serve ARTIFACT until told to stop."""
    _need_artifact(settings)
    from twofold.server.artifact import artifact
    from twofold.server.environment import environment
    from twofold.server.supervision import supervisor
    from twofold.server.supervision.events import Note
    from twofold.server.validation import check as checking

    announce = display.Announcer(display.stderr())
    try:
        opened = artifact.opened(settings.artifact, settings.cache_folder(), settings.replicas.sample)
        checking.require(opened, lambda message: announce(Note(message)))
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


@command("settings", PANELS)
def show_settings(settings: config.Config) -> int:
    """Show every setting, its value, and where that comes from."""
    listed = config.CATALOGUE.listed(settings)
    rows = ((name, options.text(value), *others) for name, value, *others in listed)
    display.table(("setting", "value", "from", "meaning"), rows, sys.stdout)
    return 0


def _need_artifact(settings: config.Config) -> None:
    if not settings.artifact:
        raise UsageError("no artifact is named", "name a folder or zip with score.py", "ARTIFACT")


def run(arguments: list[str]) -> int:
    """One call of `twofold`, other than those of the load balancer. Raises as program.run."""
    return program.run(app, PROGRAM, arguments)
