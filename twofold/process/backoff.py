"""How long a process that keeps ending is left alone before it is started again. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

MAX_STEPS = 64  # 2.0 ** 1024 is no number, and a crash loop gets there overnight


@dataclass(frozen=True, slots=True)
class Backoff:
    """The first failure costs nothing, the second `first_s`, each further one `factor` times the last."""

    first_s: float
    most_s: float
    factor: float = 2.0

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        if failures < 2:
            return 0.0
        return min(self.most_s, self.first_s * self.factor ** min(failures - 2, MAX_STEPS))
