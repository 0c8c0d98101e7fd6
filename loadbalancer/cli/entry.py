"""The entry points of `twofold balance` and `balance-ctl`: they choose compiled modules before any import."""

from __future__ import annotations

import os

from twofold.native import load


def balance(arguments: list[str]) -> int:
    """`twofold balance ARGUMENTS`: the exit code. Raises TwofoldError."""
    load.prefer()  # before the import of any module that has a compiled form
    from twofold.loadbalancer.supervision import exec_handover
    from twofold.logs.console import say

    if exec_handover.pending(os.environ):  # executed by a reload, which has passed checked settings
        from twofold.loadbalancer.supervision import supervisor
        from twofold.loadbalancer.supervision.resources import ChildEntries

        return int(supervisor.resume(exec_handover.receive(os.environ), ChildEntries(), say))
    from twofold.loadbalancer.cli import commands

    return commands.run(arguments)


def control(arguments: list[str]) -> int:
    """`twofold balance-ctl ARGUMENTS`: the exit code. Raises TwofoldError."""
    from twofold.loadbalancer.cli import balance_ctl as command

    return command.run(arguments)


COMMANDS = {"balance": balance, "balance-ctl": control}
