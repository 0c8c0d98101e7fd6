"""`twofold`, or `python -m server`: runs a command and turns whatever comes out into an exit code."""

from __future__ import annotations

import os
import sys

from server.errors import ExitCode, TwofoldError, UsageError

INTERRUPTED = 128 + 2  # what a shell reports for a process that SIGINT ended


def main() -> int:
    """The exit code; everything to be said about a failure has been said on standard error."""
    try:
        return run(sys.argv[1:])
    except TwofoldError as error:
        from server import display

        display.failure(error, display.stderr())
        return int(error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(ExitCode.OK)
    except Exception:
        import traceback

        traceback.print_exc()
        print("twofold: a bug in twofold, not in your model; please report the lines above", file=sys.stderr)
        return int(ExitCode.INTERNAL)


def run(arguments: list[str]) -> int:
    """One command. Raises TwofoldError, and UsageError for an unknown option or command."""
    import typer

    from server import cli

    try:
        code = cli.app(arguments, prog_name="twofold", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except typer.Abort:
        return INTERRUPTED
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
        raise UsageError(error.format_message(), "`twofold --help` lists the options") from None


if __name__ == "__main__":
    sys.exit(main())
