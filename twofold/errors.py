"""Errors for the user: one readable line, and an exit code for each kind of cause.

Touches nothing, and imports no other module of twofold.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

TRACEBACK = "Traceback (most recent call last):"


class ExitCode(IntEnum):
    """The exit codes of `twofold`. The numbers are a contract: their meanings do not change."""

    OK = 0
    INTERNAL = 1  # a bug in twofold
    USAGE = 2  # the command line
    CONFIG = 3  # the settings file or a TWOFOLD_* variable, or a file that they or an option name
    ARTIFACT = 4  # the folder or zip: missing, broken, or without a fitting score.py
    ENVIRONMENT = 5  # the model's interpreter: archive, Python version, unpacking
    MODEL = 6  # score.py: import, load_model() or predict()
    ADDRESS = 7  # host and port: in use, or binding them is not permitted
    RESOURCES = 8  # memory, disk, or a folder that cannot be written

    @property
    def meaning(self) -> str:
        """The meaning in words."""
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
    """Index of the line of a traceback that names the exception: the first one after all frames."""
    frames = [index for index, line in enumerate(lines) if line.lstrip().startswith('File "')]
    behind = range(frames[-1] + 1 if frames else 0, len(lines))
    return next((index for index in behind if not lines[index].startswith(" ")), len(lines) - 1)


class TwofoldError(Exception):
    """A failure that the user can correct. `str()` is one line: place, message, remedy.

    Of a message with a traceback, the line has the beginning and the exception.
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
    """The command line is not valid."""

    exit_code = ExitCode.USAGE


class ConfigError(TwofoldError):
    """A setting in the file or in a variable is unknown, or its value is not allowed.

    Also raised for a file that a setting names, whatever the source of the setting.
    """

    exit_code = ExitCode.CONFIG


class ArtifactError(TwofoldError):
    """The artifact is missing, broken or incomplete."""

    exit_code = ExitCode.ARTIFACT


class EnvironmentFailure(TwofoldError):
    """The model's interpreter cannot be found or made. (EnvironmentError is a name of Python.)"""

    exit_code = ExitCode.ENVIRONMENT


class ModelError(TwofoldError):
    """score.py does not import, load or predict."""

    exit_code = ExitCode.MODEL


class AddressError(TwofoldError):
    """The listening address cannot be bound."""

    exit_code = ExitCode.ADDRESS


class ResourceError(TwofoldError):
    """Memory or disk is not enough, or a folder cannot be used."""

    exit_code = ExitCode.RESOURCES
