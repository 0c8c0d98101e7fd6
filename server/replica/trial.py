"""Try an artifact in a throw-away process of the model's own interpreter, and say how it went.

Standard library only, Python 3.7 to 3.14.  Reads one JSON object from stdin, prints one as the last
line of stdout; what the model prints meanwhile goes to stderr.

    in    {"artifact": folder, "sample": path or null, "threads": n}
    out   {"python", "stages": [{"name", "seconds", "memory_mb", "peak_mb", "error"}], "loaded_by_import",
           "orjson", "numpy", "result_preview"}

load_model() may be called by the import, as the default of an argument of predict(). What it takes
then counts for the stage "load" all the same.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

from . import codec, model, onnx_threads

MAX_PREVIEW = 200


class Stages:
    """What was tried, how long it took, and how much memory grew."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.loading = 0.0, 0  # seconds and bytes that load_model() took while score.py was imported
        self.loaded_by_import = False

    def load(self, load: Any, *args: Any, **kwargs: Any) -> Any:
        """Call load_model() for the import, and keep what it takes apart."""
        started_s, before = time.monotonic(), _resident()
        self.loaded_by_import = True
        try:
            return load(*args, **kwargs)
        finally:
            loading_s, size = self.loading
            self.loading = loading_s + time.monotonic() - started_s, size + _resident() - before

    def run(self, name: str, call: Any) -> Any:
        """What `call` returns; None if it failed."""
        started_s, before = time.monotonic(), _resident()
        error, result = "", None
        try:
            result = call()
        except model.LoadFailure as failure:
            name, error = ("load" if failure.stage == "load" else name), str(failure)
        except BaseException as failure:
            error = model.users_traceback(failure)
        spent_s, grown = time.monotonic() - started_s, _resident() - before
        if name == "import":  # without what was loaded meanwhile
            spent_s, grown = spent_s - self.loading[0], grown - self.loading[1]
        elif name == "load" and not error:
            spent_s, grown = spent_s + self.loading[0], grown + self.loading[1]
        self.results.append({
            "name": name,
            "seconds": spent_s,
            "memory_mb": grown / 1e6,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            "error": error,
        })  # fmt: skip
        return result


def main() -> None:
    verdicts = os.dup(1)
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    onnx_threads.limit_onnxruntime(asked["threads"])
    stages = Stages()
    preview = ""
    artifact = asked["artifact"]
    imported = stages.run("import", lambda: model.import_score_module(artifact, stages.load))
    if imported is not None:
        loaded = stages.run("load", lambda: model.Model.from_import(imported))
        if loaded is not None and asked.get("sample"):
            answer = stages.run("predict", lambda: _try(loaded.predict, asked["sample"]))
            preview = (answer or b"")[:MAX_PREVIEW].decode("utf-8", "replace")
    numpy = sys.modules.get("numpy")
    verdict = {
        "python": "%d.%d.%d" % sys.version_info[:3],
        "stages": stages.results,
        "loaded_by_import": stages.loaded_by_import,
        "orjson": codec.select()[0] is not codec.loads,
        "numpy": getattr(numpy, "__version__", None),
        "result_preview": preview,
    }
    os.write(verdicts, b"\n" + json.dumps(verdict).encode() + b"\n")
    try:
        sys.stdout.flush()
    finally:
        os._exit(0)  # threads that the model left running must not keep us


def _try(predict: Any, path: str) -> bytes:
    encoded: bytes = codec.select()[1](predict(codec.read_sample(path)))
    return encoded


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
