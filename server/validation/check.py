"""`twofold check`: validates an artifact without serving it.

The steps are ordered by cost: the files, the signatures, the environment, and then the model, which is
imported, loaded and tried in a one-shot process of its own interpreter.  A step is skipped if it could only
fail for the reason of the last one.  `examine` needs no process and also runs before serving, so that `check`
and `serve` report the same errors.  Touches the cache folder and one-shot processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twofold.errors import ArtifactError, ConfigError, ExitCode, ModelError, TwofoldError
from twofold.process import one_shot
from twofold.server.artifact import artifact
from twofold.server.artifact.artifact import Artifact
from twofold.server.artifact.diagnostics import CRASH, REMEDIES, SLOW
from twofold.server.artifact.diagnostics import Diagnostic as Diagnostic  # for callers of run()
from twofold.server.config import Config
from twofold.server.environment import environment
from twofold.server.environment.archive_source import ArchiveProgress
from twofold.server.environment.environment import Environment
from twofold.server.machine import capacity
from twofold.server.validation import score_signature

RUNTIME = Path(__file__).parents[1] / "replica"
STAGES = {"import": "import of score.py", "load": "load_model()", "predict": "predict()"}
OWN_FRAMES = (str(RUNTIME), "<frozen ")
ShowDiagnostic = Callable[[Diagnostic], None]


def run(
    config: Config, show: ShowDiagnostic, progress: ArchiveProgress = lambda step, done, total: None
) -> ExitCode:
    """Pass each diagnostic to `show`; the exit code is that of the first error, or OK."""
    failed: list[ExitCode] = []

    def note(diagnostic: Diagnostic) -> None:
        show(diagnostic)
        if diagnostic.level == "error":
            failed.append(diagnostic.exit_code)

    subject = "artifact"
    try:
        opened = artifact.opened(config.artifact, config.cache_folder(), config.replicas.sample)
        note(Diagnostic("ok", "artifact", f"{opened.name}, with score.py at {opened.path}"))
        for diagnostic in examine(opened):
            note(diagnostic)
        subject = "environment"
        prepared = environment.prepare(opened.runtime, config.environment, progress)
        note(Diagnostic("ok", subject, f"{prepared.name}, Python {prepared.version} at {prepared.python}"))
        if not failed:
            subject = "model"
            _check_model(config, opened, prepared, note)
    except TwofoldError as error:
        message = f"{error.place}: {error.message}" if error.place else error.message
        if isinstance(error, ConfigError):
            subject, message = error.place, error.message
        note(Diagnostic("error", subject, message, error.remedy, error.exit_code))
    return failed[0] if failed else ExitCode.OK


def require(opened: Artifact, note: Callable[[str], None]) -> None:
    """Examine the artifact before any process is started; warnings go to `note`.

    Raises ArtifactError, or ConfigError for a sample request that a setting names: the first error of run().
    """
    found = examine(opened)
    for warning in (diagnostic for diagnostic in found if diagnostic.level == "warning"):
        note(f"{warning.subject}: {warning.message} ({warning.remedy})")
    wrong = [diagnostic for diagnostic in found if diagnostic.level == "error"]
    if wrong:
        first, others = wrong[0], len(wrong) - 1
        kind = ConfigError if first.exit_code == ExitCode.CONFIG else ArtifactError
        more = f"; `twofold check` shows {others} more" if others else ""
        raise kind(first.message, first.remedy + more, first.subject)


def examine(opened: Artifact) -> list[Diagnostic]:
    """The diagnostics of the files alone; no code of the artifact runs."""
    version = opened.runtime.python_version if opened.runtime else ""
    complaints = score_signature.check(opened.path / artifact.SCORE, version)
    fine = Diagnostic("ok", artifact.SCORE, "defines load_model() and predict() as it should")
    return [*(complaints or [fine]), *_examine_runtime(opened), *_examine_sample(opened)]


def _examine_runtime(opened: Artifact) -> Iterator[Diagnostic]:
    subject, runtime = artifact.RUNTIME, opened.runtime
    yield from opened.remarks
    if runtime is None:
        there = (opened.path / artifact.RUNTIME).exists()
        what = "says nothing about deployment" if there else "there is none"
        yield Diagnostic("ok", subject, f"{what}: the default environment serves")
        return
    if runtime.format != artifact.FORMAT:
        message = f"MODEL_ARTIFACT_VERSION is {runtime.format or 'missing'}"
        yield Diagnostic("warning", subject, message, f"the model catalog wants '{artifact.FORMAT}'")
    if not runtime.python_version:
        message = "INFERENCE_PYTHON_VERSION is missing"
        yield Diagnostic("warning", subject, message, "write it, so that it can be checked")
    wanted = f", Python {runtime.python_version}" if runtime.python_version else ""
    yield Diagnostic("ok", subject, f"environment {runtime.env_path or 'default'}{wanted}")


def _examine_sample(opened: Artifact) -> Iterator[Diagnostic]:
    """An error for a sample request that cannot be read, or is named *.json and is not JSON."""
    if opened.sample is None:
        return
    from twofold.server.replica import codec

    own = opened.holds_sample()
    code = ExitCode.ARTIFACT if own else ExitCode.CONFIG
    name = artifact.SAMPLE if own else str(opened.sample)
    try:
        codec.read_sample(str(opened.sample))
    except OSError as error:
        message, remedy = f"{name} cannot be read: {error.strerror}", "check its permissions"
        yield Diagnostic("error", "sample", message, remedy, code)
    except ValueError as error:
        line, column = getattr(error, "lineno", 0), getattr(error, "colno", 0)
        place = f" in line {line}, column {column}" if line else ""
        message = f"{name} is not JSON{place}: {getattr(error, 'msg', error)}"
        remedy = "correct it; a sample of another kind has another name than *.json"
        yield Diagnostic("error", "sample", message, remedy, code)


# ---------------------------------------------------------------------- the one-shot process


def _check_model(config: Config, opened: Artifact, prepared: Environment, note: ShowDiagnostic) -> None:
    limit_s = config.replicas.load_timeout
    # The resources of the first replica, so that time and memory are those of serving.
    plan = capacity.plan(config.replicas, capacity.cores(), capacity.visible_gpus(os.environ))
    parameters = {
        "artifact": str(opened.path),
        "sample": str(opened.sample) if opened.sample else None,
        "threads": plan.threads,
    }
    command = [str(prepared.python), str(RUNTIME), "trial"]
    variables = {
        "PYTHONFAULTHANDLER": "1",  # a crash dumps its stacks
        **capacity.thread_variables(plan.threads),
        **prepared.variables,
        "TWOFOLD_REPLICA": "0",
    }
    if plan.gpus[0] is not None:
        variables["CUDA_VISIBLE_DEVICES"] = plan.gpus[0]
    try:
        outcome = one_shot.run(command, variables, limit_s, json.dumps(parameters).encode(), opened.path)
    except OSError as error:
        raise ModelError(
            f"cannot start {prepared.python}: {error.strerror}", "check the environment"
        ) from None
    answer = _answer(outcome.output)
    if answer is None:
        raise ModelError(*_unanswered(outcome, limit_s))
    _report_answer(answer, note)
    if opened.sample is None:
        message = f"no {artifact.SAMPLE} in the artifact, so predict() was not tried"
        note(Diagnostic("note", "sample", message, "add one, or name a file with --sample"))


def _answer(output: bytes) -> dict[str, Any] | None:
    """The last line of the output, if it is the result of replica/trial.py; else None."""
    lines = output.splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and "stages" in answer else None


def _unanswered(outcome: one_shot.ProcessOutcome, limit_s: float) -> tuple[str, str]:
    """(message, remedy) for a process that ended without a result."""
    if outcome.code is None:
        return (
            f"importing, loading and trying it took longer than {limit_s:g} s, and were ended",
            SLOW,
        )
    lines = [
        line for line in outcome.errors.strip().splitlines() if not any(own in line for own in OWN_FRAMES)
    ]
    tail = "\n".join(lines[-20:])
    message = f"the process that tries the model {outcome.end()}"
    if outcome.code < 0:
        return (
            f"{message}\n{tail}".strip(),
            CRASH,
        )
    return f"{message}\n{tail}".strip(), "score.py must not end the process"


def _report_answer(answer: Mapping[str, Any], note: ShowDiagnostic) -> None:
    extras = "orjson" if answer.get("orjson") else "json (orjson in the environment would be faster)"
    note(Diagnostic("ok", "python", f"{answer['python']}; answers are written by {extras}"))
    done = set()
    for stage in answer["stages"]:
        name, error = stage["name"], stage["error"]
        subject = STAGES.get(name, name)
        done.add(name)
        if error:
            remedy = REMEDIES.get(name, "correct score.py")
            note(Diagnostic("error", subject, error.strip(), remedy, ExitCode.MODEL))
            continue
        spent = f"{stage['seconds']:.2f} s, {max(0.0, stage['memory_mb']):.0f} MB more memory"
        early = name == "load" and answer.get("loaded_by_import")
        note(Diagnostic("ok", subject, f"{spent}, called while score.py was imported" if early else spent))
    if "predict" in done and answer.get("result_preview"):
        note(Diagnostic("ok", "answer", str(answer["result_preview"])))
