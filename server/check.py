"""`twofold check`: everything that can be known about an artifact before it serves.

From cheap to dear: the files, the signatures, the environment, and then the model itself, imported,
loaded and tried in a throw-away process of its own interpreter.  It stops where the next step could
only fail for the same reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server import artifact, environment, errand, signature
from server.artifact import Artifact
from server.config import Config
from server.environment import Environment
from server.errors import ExitCode, ModelError, TwofoldError
from server.finding import Finding as Finding  # for callers of run()

RUNTIME = Path(__file__).with_name("replica")
STAGES = {"import": "import of score.py", "load": "load_model()", "predict": "predict()"}
REMEDIES = {
    "import": "correct score.py, or add what it imports to the environment",
    "load": "correct load_model(), or add the files that it reads to the artifact",
    "signature": "write load_model() and predict(data, model=load_model())",
    "predict": "correct predict(), or the sample request",
}
OWN_FRAMES = (str(RUNTIME), "<frozen ")
Report = Callable[[Finding], None]
Progress = Callable[[str, int, int], None]


def run(config: Config, report: Report, progress: Progress = lambda what, done, total: None) -> ExitCode:
    """Report finding by finding; the exit code is that of the first error."""
    failed: list[ExitCode] = []

    def note(finding: Finding) -> None:
        report(finding)
        if finding.level == "error":
            failed.append(finding.exit_code)

    subject = "artifact"
    try:
        opened = artifact.opened(config.artifact, config.cache_folder())
        _check_artifact(opened, note)
        subject = "environment"
        prepared = environment.prepare(opened.runtime, config.environment, progress)
        note(Finding("ok", subject, f"{prepared.name}, Python {prepared.version} at {prepared.python}"))
        if not failed:
            subject = "model"
            _check_model(config, opened, prepared, note)
    except TwofoldError as error:
        message = f"{error.place}: {error.message}" if error.place else error.message
        note(Finding("error", subject, message, error.remedy, error.exit_code))
    return failed[0] if failed else ExitCode.OK


def _check_artifact(opened: Artifact, note: Report) -> None:
    runtime = opened.runtime
    note(Finding("ok", "artifact", f"{opened.name}, with score.py at {opened.path}"))
    version = runtime.python_version if runtime else ""
    complaints = signature.check(opened.path / artifact.SCORE, version)
    for complaint in complaints:
        note(complaint)
    if not complaints:
        note(Finding("ok", "score.py", "defines load_model() and predict() as it should"))
    if runtime is None:
        message = "none, or nothing in it about deployment: the default environment serves"
        note(Finding("ok", "runtime.yaml", message))
        return
    if runtime.format != artifact.FORMAT:
        message = f"MODEL_ARTIFACT_VERSION is {runtime.format or 'missing'}"
        note(Finding("warning", "runtime.yaml", message, f"the model catalog wants '{artifact.FORMAT}'"))
    if not runtime.python_version:
        message = "INFERENCE_PYTHON_VERSION is missing"
        note(Finding("warning", "runtime.yaml", message, "write it, so that it can be checked"))
    wanted = f", Python {version}" if version else ""
    note(Finding("ok", "runtime.yaml", f"environment {runtime.env_path or 'default'}{wanted}"))


# ---------------------------------------------------------------------- the throw-away process


def _check_model(config: Config, opened: Artifact, prepared: Environment, note: Report) -> None:
    settings = config.replicas
    sample = Path(settings.sample).expanduser().absolute() if settings.sample else opened.sample
    if sample is not None and not sample.is_file():
        raise ModelError(f"there is no sample request {sample}", "check --sample")
    facts = {
        "artifact": str(opened.path),
        "sample": str(sample) if sample else None,
        "threads": settings.threads or 1,
    }
    command = [str(prepared.python), str(RUNTIME), "preflight"]
    variables = {"PYTHONFAULTHANDLER": "1", **prepared.variables}  # a crash says where it was
    try:
        outcome = errand.run(
            command, variables, settings.load_timeout, json.dumps(facts).encode(), opened.path
        )
    except OSError as error:
        raise ModelError(
            f"cannot start {prepared.python}: {error.strerror}", "check the environment"
        ) from None
    answer = _answer(outcome.output)
    if answer is None:
        raise ModelError(*_unanswered(outcome, settings.load_timeout))
    _report_answer(answer, sample, prepared, note)


def _answer(output: bytes) -> dict[str, Any] | None:
    """The last line, if it is what preflight writes when it comes to its end."""
    lines = output.splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and "stages" in answer else None


def _unanswered(outcome: errand.Outcome, limit: float) -> tuple[str, str]:
    """Message and remedy for a process that ended without a word."""
    if outcome.code is None:
        return (
            f"import and load_model() took longer than {limit:g} s, and were ended",
            "allow more with --load-timeout, or find out what it waits for",
        )
    lines = [
        line for line in outcome.errors.strip().splitlines() if not any(own in line for own in OWN_FRAMES)
    ]
    tail = "\n".join(lines[-20:])
    message = f"the process that tries the model {outcome.end()}"
    if outcome.code < 0:
        return (
            f"{message}\n{tail}".strip(),
            "a library that the model uses crashes, or there is not enough memory",
        )
    return f"{message}\n{tail}".strip(), "score.py must not end the process"


def _report_answer(
    answer: Mapping[str, Any], sample: Path | None, prepared: Environment, note: Report
) -> None:
    extras = "orjson" if answer.get("orjson") else "json (orjson in the environment would be faster)"
    note(Finding("ok", "python", f"{answer['python']}; answers are written by {extras}"))
    done = set()
    for stage in answer["stages"]:
        name, error = stage["name"], stage["error"]
        subject = STAGES.get(name, name)
        done.add(name)
        if error:
            note(
                Finding(
                    "error", subject, error.strip(), REMEDIES.get(name, "correct score.py"), ExitCode.MODEL
                )
            )
        else:
            note(Finding("ok", subject, f"{stage['seconds']:.2f} s, {stage['memory_mb']:.0f} MB more memory"))
    if "predict" in done and answer.get("result_preview"):
        note(Finding("ok", "answer", str(answer["result_preview"])))
    if sample is None:
        note(Finding("ok", "sample", f"no {artifact.SAMPLE} in the artifact: predict() was not tried"))
