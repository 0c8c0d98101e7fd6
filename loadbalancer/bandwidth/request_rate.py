"""Requests per second, and what one caller may take: the generic cell rate algorithm (ITU-T I.371).

Pure; the clock is an argument (monotonic ns).  All that is kept of a caller is one time, `due_ns`: when
the caller will have earned what it has used.  It may run ahead of the clock by the tolerance, which
is the burst.
"""

from __future__ import annotations

from collections import OrderedDict

SECOND = 1_000_000_000
MAX_CALLERS = 10_000
BURST_SECONDS = 1.0  # of its rate that a caller may use at once


class Gcra:
    """One account; `rate` in units per second. What a unit is, is the user's matter."""

    __slots__ = ("_due_ns", "_per_unit", "_tolerance_ns")

    def __init__(self, rate: float, burst: float = BURST_SECONDS) -> None:
        self._per_unit = SECOND / rate
        self._tolerance_ns = max(int(burst * SECOND), int(self._per_unit))
        self._due_ns = 0.0

    def take(self, now_ns: int, units: float = 1.0) -> int:
        """0 if `units` are granted, otherwise the ns after which they would be."""
        due_ns = max(self._due_ns, now_ns) + units * self._per_unit
        ahead_ns = due_ns - now_ns
        # Whoever owes nothing may take anything once: it is earned back before the next one.
        if ahead_ns > self._tolerance_ns and self._due_ns > now_ns:
            return int(ahead_ns - self._tolerance_ns)
        self._due_ns = due_ns
        return 0

    def charge(self, now_ns: int, units: float) -> None:
        """What has been taken without asking."""
        self._due_ns = max(self._due_ns, now_ns) + units * self._per_unit


class CallerRates:
    """An account for each caller, the least recently seen forgotten when there are too many."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._accounts: OrderedDict[str, Gcra] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, caller: str) -> Gcra:
        account = self._accounts.get(caller)
        if account is None:
            if len(self._accounts) >= MAX_CALLERS:
                self._accounts.popitem(last=False)
            account = self._accounts[caller] = Gcra(self._rate)
        else:
            self._accounts.move_to_end(caller)
        return account
