"""Checks the signatures of load_model() and predict() in the text of score.py, without running it.

Reads score.py only.  Only functions at the top level of the file count, as in the check of the model catalog.
"""

from __future__ import annotations

import ast
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from twofold.errors import ExitCode
from twofold.server.artifact.diagnostics import Diagnostic

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class _Signature:
    """The names of positional parameters, and of parameters without a default."""

    positional: list[str]
    required: set[str] = field(default_factory=set)


def check(score: Path, python_version: str = "") -> list[Diagnostic]:
    """The errors of load_model() and predict(); [] if there is none.

    `python_version` is the model's.  If it is newer than the server's Python, a syntax error is a warning.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about style; they do not concern the signatures
            tree = ast.parse(score.read_bytes(), str(score))
    except OSError as error:
        return [_error(score.name, f"cannot be read: {error.strerror}", "check its permissions")]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
        newer = python_version and tuple(map(int, python_version.split(".")[:2])) > sys.version_info[:2]
        message = f"is not valid Python{f' in line {line}' if line else ''}: {reason}"
        if newer:
            remedy = f"only Python {python_version} can judge: importing it will show"
            return [Diagnostic("warning", score.name, message, remedy)]
        return [_error(score.name, message, "correct it")]
    functions = {node.name: node for node in tree.body if isinstance(node, Function)}
    return [*_check_load_model(functions.get("load_model")), *_check_predict(functions.get("predict"))]


def _check_load_model(function: Function | None) -> list[Diagnostic]:
    subject = "load_model()"
    found = _check_definition(subject, function)
    if found or function is None:
        return found
    required = sorted(_signature(function).required)
    if required:
        message = f"needs {', '.join(required)}, and is called without arguments"
        return [_error(subject, message, "give defaults")]
    return []


def _check_predict(function: Function | None) -> list[Diagnostic]:
    subject = "predict()"
    found = _check_definition(subject, function)
    if found or function is None:
        return found
    signature = _signature(function)
    remedy = "write it as predict(data, model=load_model())"
    if signature.positional[:1] != ["data"]:
        first = f"not {signature.positional[0]!r}" if signature.positional else "but it has none"
        found.append(_error(subject, f"its first argument must be named 'data', {first}", remedy))
    # Artifacts for model groups give `model` no default; its argument is the result of load_model().
    required = sorted(signature.required - {"data", "model", *signature.positional[:1]})
    if required:
        found.append(_error(subject, f"{', '.join(required)} must have a default", remedy))
    return found


def _check_definition(subject: str, function: Function | None) -> list[Diagnostic]:
    if function is None:
        return [_error(subject, "score.py defines none", "define it with `def` at the top level of the file")]
    if isinstance(function, ast.AsyncFunctionDef):
        return [_error(subject, "is a coroutine function", "define it with `def` instead of `async def`")]
    return []


def _signature(function: Function) -> _Signature:
    arguments = function.args
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    required = set(positional[: len(positional) - len(arguments.defaults)])
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return _Signature(positional, required | {argument.arg for argument, default in named if default is None})


def _error(subject: str, message: str, remedy: str) -> Diagnostic:
    return Diagnostic("error", subject, message, remedy, ExitCode.ARTIFACT)
