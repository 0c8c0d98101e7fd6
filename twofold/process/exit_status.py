"""How a process ended, in words. Touches nothing."""

from __future__ import annotations

import signal

_SIGNALS = {each.value: each.name for each in signal.Signals}  # of real-time signals, the first and the last


def how(code: int) -> str:
    """ "exited with code 1" or "killed by SIGKILL"; `code` as os.waitstatus_to_exitcode() has it."""
    return f"exited with code {code}" if code >= 0 else f"killed by {signal_name(-code)}"


def signal_name(number: int) -> str:
    return _SIGNALS.get(number, f"signal {number}")
