"""One call of a typer program: its exit code, and its complaints as errors of ours.

Touches standard output, which is flushed.
"""

from __future__ import annotations

import sys

import typer

from twofold.errors import ExitCode, TwofoldError, UsageError


def run(app: typer.Typer, name: str, arguments: list[str]) -> int:
    """Call `app`, the program `name`, with `arguments`: its exit code.

    Raises TwofoldError; UsageError for an unknown command, an unknown option or a missing argument;
    BrokenPipeError when the reader of standard output has left; KeyboardInterrupt.
    """
    try:
        code = app(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except typer.Abort:  # what typer makes of a KeyboardInterrupt, or since some version the exit code 130
        raise KeyboardInterrupt from None
    except SystemExit as ended:  # what typer makes of a broken pipe
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise
    except Exception as error:
        # typer's complaints about a command line share no public class across its versions, but this method.
        if isinstance(error, TwofoldError) or not hasattr(error, "format_message"):
            raise
        if not error.format_message():
            return int(ExitCode.USAGE)  # no command at all: the help has been shown
        command = getattr(getattr(error, "ctx", None), "command_path", name)
        raise UsageError(error.format_message(), f"`{command} --help` lists what there is") from None
