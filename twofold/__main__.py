"""`twofold`, or `python -m twofold`: runs a command and turns whatever comes out into an exit code."""

from __future__ import annotations

import os
import signal
import sys

from twofold.errors import ExitCode, TwofoldError

# What a shell reports for a process that a signal ended. A running instance catches both, and stops.
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


class Interrupted(BaseException):
    """SIGINT or SIGTERM, so that what was started for a check or an unpacking is ended, and tidied up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> int:
    """The exit code; everything to be said about a failure has been said on standard error."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup, and a shell without job control, would have it
            signal.signal(number, _interrupt)
    try:
        return _command()
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _interrupt:  # a supervisor has its own, and they outlive it
                signal.signal(number, handler)


def _interrupt(number: int, stack: object) -> None:
    raise Interrupted(number)


def _command() -> int:
    try:
        return run(sys.argv[1:])
    except TwofoldError as error:
        from twofold.server.cli import display

        display.failure(error, display.stderr())
        return int(error.exit_code)
    except Interrupted as signalled:
        print("twofold: interrupted", file=sys.stderr)
        return TERMINATED if signalled.number == signal.SIGTERM else INTERRUPTED
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
    if arguments and arguments[0].startswith("balance"):  # a program of its own, under the same name
        from twofold.loadbalancer.cli.entry import COMMANDS

        if arguments[0] in COMMANDS:
            return COMMANDS[arguments[0]](arguments[1:])
    from twofold.server.cli import commands

    return commands.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
