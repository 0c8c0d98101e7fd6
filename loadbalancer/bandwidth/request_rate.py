"""Limits of requests per second and per caller: the generic cell rate algorithm (ITU-T I.371).

Pure; the clock is an argument (monotonic ns).  The state of a caller is one time, `due_ns`: the theoretical
arrival time of its next unit.  A request conforms while due_ns - now_ns <= tolerance, which is the burst.
"""

from __future__ import annotations

from collections import OrderedDict

SECOND_NS = 1_000_000_000
MAX_CALLERS = 10_000
BURST_SECONDS = 1.0  # a caller may use the units of this time at once


class Gcra:
    """One account; `rate` in units per second. The caller defines the unit."""

    __slots__ = ("_due_ns", "_tolerance_ns", "_unit_ns")

    def __init__(self, rate: float, burst_s: float = BURST_SECONDS) -> None:
        self._unit_ns = SECOND_NS / rate
        self._tolerance_ns = max(int(burst_s * SECOND_NS), int(self._unit_ns))
        self._due_ns = 0.0

    def take(self, now_ns: int, units: float = 1.0) -> int:
        """0 if `units` are granted, otherwise the nanoseconds after which they would be."""
        due_ns = max(self._due_ns, now_ns) + units * self._unit_ns
        ahead_ns = due_ns - now_ns
        # An account without debt may take more than the burst once; it is repaid before the next request.
        if ahead_ns > self._tolerance_ns and self._due_ns > now_ns:
            return int(ahead_ns - self._tolerance_ns)
        self._due_ns = due_ns
        return 0

    def charge(self, now_ns: int, units: float) -> None:
        """Charge `units` unconditionally."""
        self._due_ns = max(self._due_ns, now_ns) + units * self._unit_ns


class CallerRates:
    """One account per caller; the least recently used is evicted beyond MAX_CALLERS."""

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
