"""Whose fault a failure is, in one readable line, and the exit code that says so to a script.

Nothing of ours is imported here; everything else may import this.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

TRACEBACK = "Traceback (most recent call last):"


class ExitCode(IntEnum):
    """What `twofold` exits with. Numbers are a contract: they are never given a new meaning."""

    OK = 0
    INTERNAL = 1  # a bug of ours
    USAGE = 2  # the command line
    CONFIG = 3  # the settings file or a TWOFOLD_* variable, or a file that they or an option name
    ARTIFACT = 4  # the folder or zip: missing, broken, or without a fitting score.py
    ENVIRONMENT = 5  # the model's interpreter: archive, Python version, unpacking
    MODEL = 6  # score.py: import, load_model() or predict()
    ADDRESS = 7  # host and port: in use, or not ours to bind
    RESOURCES = 8  # memory, disk, or a folder that cannot be written

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "all is well, or the instance was asked to stop",
    ExitCode.INTERNAL: "a bug in twofold",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.CONFIG: "the settings file, a TWOFOLD_* variable, or a file that a setting names is wrong",
    ExitCode.ARTIFACT: "the artifact is missing, broken, or has no fitting score.py",
    ExitCode.ENVIRONMENT: "the model's environment cannot be unpacked, or is not the Python it should be",
    ExitCode.MODEL: "score.py does not import, load or predict",
    ExitCode.ADDRESS: "the host and port cannot be bound",
    ExitCode.RESOURCES: "not enough memory or disk, or a folder cannot be written",
}


def raised(lines: list[str]) -> int:
    """Which line of a traceback names the exception: the first after all the frames; it may have many."""
    frames = [index for index, line in enumerate(lines) if line.lstrip().startswith('File "')]
    behind = range(frames[-1] + 1 if frames else 0, len(lines))
    return next((index for index in behind if not lines[index].startswith(" ")), len(lines) - 1)


class TwofoldError(Exception):
    """A failure that the user can understand and end. `str()` is one line: place, message, remedy.

    Of a message that holds a traceback, the line has the beginning and what was raised.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL

    def __init__(self, message: str, remedy: str = "", place: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.place = place

    def __str__(self) -> str:
        message, *others = self.message.strip().splitlines() or [""]
        if others and message.endswith(TRACEBACK):
            message = message.removesuffix(TRACEBACK) + others[raised(others)]
        elif others:
            message = f"{message}: {others[-1]}"
        text = f"{self.place}: {message}" if self.place else message
        return " ".join((f"{text} ({self.remedy})" if self.remedy else text).split())


class UsageError(TwofoldError):
    """The command line does not say what it could mean."""

    exit_code = ExitCode.USAGE


class ConfigError(TwofoldError):
    """A setting in the file or in a variable is unknown, or has a value that it cannot have.

    Also of a file that any setting names, however it was set: the same fault has one exit code.
    """

    exit_code = ExitCode.CONFIG


class ArtifactError(TwofoldError):
    """The artifact is missing, broken or incomplete."""

    exit_code = ExitCode.ARTIFACT


class EnvironmentFailure(TwofoldError):
    """The model's interpreter cannot be found or made. (EnvironmentError is a name of Python's own.)"""

    exit_code = ExitCode.ENVIRONMENT


class ModelError(TwofoldError):
    """score.py does not import, load or predict."""

    exit_code = ExitCode.MODEL


class AddressError(TwofoldError):
    """The listening address cannot be had."""

    exit_code = ExitCode.ADDRESS


class ResourceError(TwofoldError):
    """The machine lacks memory or disk, or refuses a folder."""

    exit_code = ExitCode.RESOURCES
