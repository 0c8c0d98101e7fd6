"""Signals as bytes in a pipe, so that one poll() waits for them together with other descriptors.

Touches the handlers, the mask and the wakeup descriptor of this process; main thread only.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

READ_SIZE = 512
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
CAUGHT = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


class SignalPipe:
    """Catches `numbers`: each signal becomes one byte at the descriptor `fd`, also one that was blocked."""

    __slots__ = ("_numbers", "_write", "fd")

    def __init__(self, numbers: tuple[signal.Signals, ...] = CAUGHT) -> None:
        self._numbers = numbers
        self.fd, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _caught)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def read(self) -> bytes:
        """The numbers of the signals since the last call."""
        try:
            return os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return b""

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Block the signals inside; a pending one is caught afterwards, or by the next program after exec."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)


def _caught(number: int, stack: object) -> None:
    """Python writes the number into the wakeup descriptor."""


def reset() -> None:
    """In a forked child: restore the default handlers, and remove the wakeup descriptor."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
