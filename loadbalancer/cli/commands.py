"""The command line of `twofold balance`: every setting is an option, made from loadbalancer.config.

Touches standard output.  The load balancer is imported when it starts, so that `--help` works in a broken
installation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import typer

from twofold.cli import options, program
from twofold.errors import ExitCode
from twofold.loadbalancer import config
from twofold.logs.console import say

PROGRAM = "twofold balance"
METAVARS = {
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
CHECK = typer.Option(
    False, "--check", help="Only check the settings, and show them as JSON.", show_default=False
)


def application(run: Callable[[config.Config, bool], int]) -> typer.Typer:
    """The command, which calls `run(settings, check)`."""

    def balance(config_file: str | None, check: bool, **given: object) -> int:
        file = None if config_file is None else Path(config_file)
        return run(config.load(file, os.environ, given), check)

    own = (options.config_file(), options.parameter("check", bool, CHECK))
    options.sign(balance, (*own, *options.of_settings(config.CATALOGUE, PANELS, METAVARS)))
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help="Balance requests over instances, within a bandwidth.")(balance)
    return app


# ---------------------------------------------------------------------- the command


def balance(settings: config.Config, check: bool) -> int:
    """Run the load balancer; with `check`, only validate and print the settings. Raises TwofoldError."""
    from twofold.loadbalancer.supervision import startup_checks, supervisor
    from twofold.loadbalancer.supervision.resources import ChildEntries

    startup_checks.verify(settings)
    if check:
        startup_checks.load(ChildEntries())
        print(config.CATALOGUE.to_json(settings))
        return int(ExitCode.OK)
    return int(supervisor.start(settings, ChildEntries(), say))


def run(arguments: list[str]) -> int:
    """One call of `twofold balance`. Raises as program.run."""
    return program.run(application(balance), PROGRAM, arguments)
