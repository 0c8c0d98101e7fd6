"""One finding of `twofold check`: what was looked at, how it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.errors import ExitCode


@dataclass(frozen=True, slots=True)
class Finding:
    level: Literal["ok", "warning", "error"]
    subject: str
    message: str
    remedy: str = ""
    exit_code: ExitCode = ExitCode.OK
