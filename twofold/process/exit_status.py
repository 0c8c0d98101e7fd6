"""Exit status of a process as text. Touches nothing."""

from __future__ import annotations

import signal

_SIGNALS = {
    each.value: each.name for each in signal.Signals
}  # of the real-time signals only the first and the last have names


def how(code: int) -> str:
    """ "exited with code 1" or "killed by SIGKILL"; `code`: a result of os.waitstatus_to_exitcode()."""
    return f"exited with code {code}" if code >= 0 else f"killed by {signal_name(-code)}"


def signal_name(number: int) -> str:
    """The name of a signal, or "signal 40" if it has none."""
    return _SIGNALS.get(number, f"signal {number}")
