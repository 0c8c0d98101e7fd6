"""A diagnostic about an artifact: the subject, the finding, and the remedy. Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twofold.errors import ExitCode

# Remedies for a model that fails, by the stage of its start in replicas and in `twofold check`.
REMEDIES = {
    "import": "correct score.py, or add what it imports to the environment",
    "load": "correct load_model(), or add the files that it reads to the artifact",
    "signature": "write load_model() and predict(data, model=load_model())",
    "sample": "correct predict(), or the sample request",
    "predict": "correct predict(), or the sample request",
}
SLOW = "allow more with --load-timeout, or find out what it waits for"
CRASH = "a library that the model uses crashes, or there is not enough memory"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. The level `note`: the subject was not examined."""

    level: Literal["ok", "note", "warning", "error"]
    subject: str
    message: str
    remedy: str = ""
    exit_code: ExitCode = ExitCode.OK
