"""`twofold`, or `python -m twofold`: runs a command and turns its outcome into an exit code.

Touches the handlers of SIGINT and SIGTERM, the signal mask, and standard error.
"""

from __future__ import annotations

import os
import signal
import sys

from twofold.errors import ExitCode, TwofoldError

# Exit codes of a shell for a process ended by a signal.  A running instance catches both signals, and stops.
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
# A supervisor reloads or reopens on these; their default ends a process.  They stay pending until it catches
# them.
DEFERRED = (signal.SIGHUP, signal.SIGUSR1)
SUPERVISED = frozenset({"serve", "balance"})


class Interrupted(BaseException):
    """SIGINT or SIGTERM, as an exception: started processes are ended and files removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> int:
    """Run the command of sys.argv. Returns the exit code; errors have been printed to standard error."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # set by nohup, and by a shell without job control
            signal.signal(number, _interrupt)
    deferred = DEFERRED if set(sys.argv[1:2]) & SUPERVISED else ()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, deferred)
    try:
        return _command()
    finally:
        while signal.sigtimedwait(deferred, 0):  # it came too late to mean anything
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            if signal.getsignal(number) is _interrupt:  # a supervisor may have installed handlers of its own
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
        # The reader of standard output (head, less) has closed it; the interpreter must not flush into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(ExitCode.OK)
    except Exception:
        import traceback

        traceback.print_exc()
        print("twofold: a bug in twofold, not in your model; please report the lines above", file=sys.stderr)
        return int(ExitCode.INTERNAL)


def run(arguments: list[str]) -> int:
    """Run one command. Raises TwofoldError, UsageError for an unknown option or command among them."""
    if arguments and arguments[0].startswith("balance"):  # the load balancer is a separate program
        from twofold.loadbalancer.cli.entry import COMMANDS

        if arguments[0] in COMMANDS:
            return COMMANDS[arguments[0]](arguments[1:])
    from twofold.server.cli import commands

    return commands.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
