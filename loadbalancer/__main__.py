"""`twofold balance`, or `python -m loadbalancer`: the exit code of whatever comes out of it."""

from __future__ import annotations

import os
import sys

from loadbalancer import compiled
from server.errors import ExitCode, TwofoldError

INTERRUPTED = 130  # what a shell reports for a process that a Ctrl-C ended


def balance(arguments: list[str]) -> int:
    """`twofold balance ARGUMENTS`. Raises TwofoldError."""
    compiled.prefer()  # before anything is imported that is there in both forms
    from loadbalancer import handover
    from server.log import say

    if handover.pending(os.environ):  # we are what a reload made of ourselves: the settings are settled
        from loadbalancer import supervisor
        from loadbalancer.estate import Lives

        return int(supervisor.resume(handover.receive(os.environ), Lives(), say))
    from loadbalancer import cli

    return cli.run(arguments)


def control(arguments: list[str]) -> int:
    """`twofold balance-ctl ARGUMENTS`. Raises TwofoldError."""
    from loadbalancer import ctl

    return ctl.run(arguments)


COMMANDS = {"balance": balance, "balance-ctl": control}


def main() -> int:
    """The exit code; everything to be said about a failure has been said on standard error."""
    try:
        return balance(sys.argv[1:])
    except TwofoldError as error:
        print(f"twofold: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("twofold: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
