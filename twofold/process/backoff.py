"""The delay before a process that keeps ending is started again. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

MAX_STEPS = 64  # 2.0 ** 1024 overflows; a crash loop reaches it overnight


@dataclass(frozen=True, slots=True)
class Backoff:
    """No delay after one failure, `first_s` after two, then the last times `factor`, at most `most_s`."""

    first_s: float
    most_s: float
    factor: float = 2.0

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after this number of successive failures."""
        if failures < 2:
            return 0.0
        return min(self.most_s, self.first_s * self.factor ** min(failures - 2, MAX_STEPS))
