"""Calls a typer program: returns its exit code, and turns its errors into TwofoldError.

Touches standard output, which is flushed.
"""

from __future__ import annotations

import sys

import typer

from twofold.errors import ExitCode, TwofoldError, UsageError


def run(app: typer.Typer, name: str, arguments: list[str]) -> int:
    """Call `app`, the program `name`, with `arguments`. Returns its exit code.

    Raises TwofoldError; UsageError for an unknown command, an unknown option or a missing argument;
    BrokenPipeError if the reader of standard output has closed it; KeyboardInterrupt.
    """
    try:
        code = app(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except typer.Abort:  # raised by typer for KeyboardInterrupt
        raise KeyboardInterrupt from None
    except SystemExit as ended:  # raised by typer for a broken pipe
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise
    except Exception as error:
        # The errors of typer for a command line share no public class across versions, but this method.
        if isinstance(error, TwofoldError) or not hasattr(error, "format_message"):
            raise
        if not error.format_message():
            return int(ExitCode.USAGE)  # no command: typer has shown the help
        command = getattr(getattr(error, "ctx", None), "command_path", name)
        raise UsageError(error.format_message(), f"`{command} --help` lists what there is") from None
