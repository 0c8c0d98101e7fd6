"""`twofold check`: what it finds, what it advises, and the exit code."""

from __future__ import annotations

import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.instance_process import alive, write_artifact
from twofold.errors import ExitCode
from twofold.server import config
from twofold.server.artifact.diagnostics import Diagnostic
from twofold.server.validation import check

OURS = f"{sys.version_info.major}.{sys.version_info.minor}"
GOOD = (
    "def load_model(): return 3\ndef predict(data, model=load_model()): return {'sum': sum(data) + model}\n"
)
RUNTIME = """MODEL_ARTIFACT_VERSION: '3.0'
MODEL_DEPLOYMENT: {INFERENCE_CONDA_ENV: {INFERENCE_ENV_PATH: ENV, INFERENCE_PYTHON_VERSION: 'VERSION'}}
"""


class Checked:
    def __init__(self, artifact: Path, cache: Path, **options: object) -> None:
        self.diagnostics: list[Diagnostic] = []
        asked: dict[str, Any] = {"cache_dir": str(cache), **options}
        settings = config.load(str(artifact), None, {}, asked)
        self.code = check.run(settings, self.diagnostics.append)

    @property
    def errors(self) -> list[Diagnostic]:
        return [diagnostic for diagnostic in self.diagnostics if diagnostic.level == "error"]

    @property
    def subjects(self) -> list[str]:
        return [diagnostic.subject for diagnostic in self.diagnostics]

    def only_error(self, code: ExitCode) -> Diagnostic:
        assert self.code == code, self.diagnostics
        assert len(self.errors) == 1, self.diagnostics
        assert self.errors[0].remedy and self.errors[0].exit_code == code
        return self.errors[0]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def runtime(env: str = "", version: str = OURS) -> str:
    return RUNTIME.replace("PATH: ENV", f"PATH: '{env}'").replace("'VERSION'", f"'{version}'")


# ---------------------------------------------------------------------- good


def test_good_artifact(tmp_path: Path, cache: Path) -> None:
    artifact = write_artifact(tmp_path / "good", GOOD, sample__json="[1, 2]")
    done = Checked(artifact, cache)
    assert done.code == ExitCode.OK and not done.errors
    assert done.diagnostics[-1] == Diagnostic("ok", "answer", '{"sum":6}')
    told = [diagnostic.subject for diagnostic in done.diagnostics]
    assert told == [
        "artifact", "score.py", "runtime.yaml", "environment", "python",
        "import of score.py", "load_model()", "predict()", "answer",
    ]  # fmt: skip


def test_good_zip_with_runtime(tmp_path: Path, cache: Path) -> None:
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.writestr("good/score.py", GOOD)
        archive.writestr("good/runtime.yaml", runtime())
    done = Checked(tmp_path / "good.zip", cache)
    assert done.code == ExitCode.OK, done.diagnostics
    assert "predict() was not tried" in done.diagnostics[-1].message


def test_sample_from_elsewhere(tmp_path: Path, cache: Path) -> None:
    artifact = write_artifact(tmp_path / "good", GOOD)
    (tmp_path / "request.json").write_text("[10]")
    done = Checked(artifact, cache, sample=str(tmp_path / "request.json"))
    assert done.code == ExitCode.OK and done.diagnostics[-1].message == '{"sum":13}'
    missing = Checked(artifact, cache, sample=str(tmp_path / "none.json"))
    assert "there is no file" in missing.only_error(ExitCode.CONFIG).message
    assert missing.errors[0].subject == "sample"


def test_binary_sample(tmp_path: Path, cache: Path) -> None:
    score = "def load_model(): ...\ndef predict(data, model=None): return [type(data).__name__, len(data)]\n"
    (tmp_path / "request.bin").write_bytes(b"\xff\x00{")
    done = Checked(write_artifact(tmp_path / "raw", score), cache, sample=str(tmp_path / "request.bin"))
    assert done.code == ExitCode.OK and done.diagnostics[-1].message == '["bytes",3]'


def test_broken_sample_is_not_the_models_fault(tmp_path: Path, cache: Path) -> None:
    artifact = write_artifact(tmp_path / "good", GOOD, sample__json="[1,\n 2")
    error = Checked(artifact, cache).only_error(ExitCode.ARTIFACT)
    assert error.subject == "sample"
    assert error.message.startswith("sample.json is not JSON in line 2, column 3")
    (tmp_path / "request.json").write_bytes(b"\xff")
    error = Checked(artifact, cache, sample=str(tmp_path / "request.json")).only_error(ExitCode.CONFIG)
    assert f"{tmp_path / 'request.json'} is not JSON" in error.message


def test_time_of_load_model_counts_for_the_load_stage(tmp_path: Path, cache: Path) -> None:
    score = (
        "import time\ndef load_model(): time.sleep(0.4)\ndef predict(data, model=load_model()): return 1\n"
    )
    done = Checked(write_artifact(tmp_path / "slow", score), cache)
    told = {diagnostic.subject: diagnostic.message for diagnostic in done.diagnostics}
    assert float(told["load_model()"].split()[0]) >= 0.4 > float(told["import of score.py"].split()[0])
    assert told["load_model()"].endswith("called while score.py was imported")


def test_a_check_uses_the_threads_of_serving(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")  # what a user has set wins
    names = ["OMP_NUM_THREADS", "TWOFOLD_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"]
    score = (
        f"import os\ndef load_model(): ...\ndef predict(data): return [os.environ.get(n) for n in {names}]\n"
    )
    artifact = write_artifact(tmp_path / "asks", score, sample__json="0")
    done = Checked(artifact, cache, threads=5)
    assert done.diagnostics[-1].message == '["5","5","7","3"]'


def test_key_of_runtime_in_the_wrong_place(tmp_path: Path, cache: Path) -> None:
    text = "MODEL_ARTIFACT_VERSION: '3.0'\nINFERENCE_PYTHON_VERSION: '3.7'\n"
    done = Checked(write_artifact(tmp_path / "top", GOOD, runtime__yaml=text), cache)
    assert done.code == ExitCode.OK
    [warning] = [diagnostic for diagnostic in done.diagnostics if diagnostic.level == "warning"]
    assert warning.subject == "runtime.yaml" and "MODEL_DEPLOYMENT > INFERENCE_CONDA_ENV" in warning.remedy


@pytest.mark.parametrize(("text", "words"), [(None, "there is none"), ("# later", "says nothing about")])
def test_no_runtime_is_not_an_empty_one(text: str | None, words: str, tmp_path: Path, cache: Path) -> None:
    files = {} if text is None else {"runtime__yaml": text}
    done = Checked(write_artifact(tmp_path / "good", GOOD, **files), cache)
    [said] = [diagnostic.message for diagnostic in done.diagnostics if diagnostic.subject == "runtime.yaml"]
    assert said.startswith(words)


def test_a_stage_that_was_not_tried_is_not_reported_as_passed(tmp_path: Path, cache: Path) -> None:
    done = Checked(write_artifact(tmp_path / "good", GOOD), cache)
    assert done.code == ExitCode.OK
    assert (done.diagnostics[-1].subject, done.diagnostics[-1].level) == ("sample", "note")


def test_prints_do_not_disturb(tmp_path: Path, cache: Path) -> None:
    score = "import os\nprint('{\"stages\": []}')\nos.system('echo from a child')\n" + GOOD
    assert Checked(write_artifact(tmp_path / "loud", score), cache).code == ExitCode.OK


def test_memory_of_a_large_model_is_measured(tmp_path: Path, cache: Path) -> None:
    score = "def load_model(): return bytearray(b'x') * 60_000_000\ndef predict(data, model=None): return 1\n"
    done = Checked(write_artifact(tmp_path / "large", score), cache)
    line = next(diagnostic.message for diagnostic in done.diagnostics if diagnostic.subject == "load_model()")
    assert 55 < float(line.split(", ")[1].split(" MB")[0]) < 120


# ---------------------------------------------------------------------- the artifact, the environment


def test_missing_score(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no score.py" in Checked(tmp_path / "empty", cache).only_error(ExitCode.ARTIFACT).message


def test_broken_zip(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and then nothing")
    assert "nor a whole zip" in Checked(tmp_path / "a.zip", cache).only_error(ExitCode.ARTIFACT).message


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    shutil.make_archive(str(tmp_path / "good"), "zip", write_artifact(tmp_path / "good", GOOD))
    done = Checked(tmp_path / "good.zip", tmp_path / "cache")
    assert "--cache-dir" in done.only_error(ExitCode.RESOURCES).remedy


def test_wrong_signature_is_not_run(tmp_path: Path, cache: Path) -> None:
    score = "import pathlib\npathlib.Path('ran').touch()\ndef load_model(): ...\ndef predict(x): ...\n"
    done = Checked(write_artifact(tmp_path / "wrong", score), cache)
    assert "first argument must be named 'data'" in done.only_error(ExitCode.ARTIFACT).message
    assert "environment" in done.subjects  # what does not depend on it is looked at all the same
    assert not (tmp_path / "wrong" / "ran").exists()


def test_wrong_python(tmp_path: Path, cache: Path) -> None:
    artifact = write_artifact(tmp_path / "old", GOOD, runtime__yaml=runtime(version="3.7"))
    error = Checked(artifact, cache).only_error(ExitCode.ENVIRONMENT)
    assert "asks for Python 3.7" in error.message and "INFERENCE_PYTHON_VERSION" in error.remedy


def test_missing_archive(tmp_path: Path, cache: Path) -> None:
    artifact = write_artifact(tmp_path / "lost", GOOD, runtime__yaml=runtime("env.tar.gz"))
    error = Checked(artifact, cache).only_error(ExitCode.ENVIRONMENT)
    assert f"{artifact}/env.tar.gz" in error.message


def test_old_format_is_a_warning(tmp_path: Path, cache: Path) -> None:
    artifact = write_artifact(tmp_path / "old", GOOD, runtime__yaml=runtime().replace("3.0", "2.0"))
    done = Checked(artifact, cache)
    assert done.code == ExitCode.OK
    assert [
        diagnostic.level for diagnostic in done.diagnostics if "VERSION is 2.0" in diagnostic.message
    ] == ["warning"]


# ---------------------------------------------------------------------- the model

FAILING = {
    "import of score.py": "import not_installed_at_all\n" + GOOD,
    "load_model()": "def load_model(): return open('missing.bin')\ndef predict(data, model=None): return 1\n",
    "predict()": "def load_model(): ...\ndef predict(data, model=None): return data['missing']\n",
}


@pytest.mark.parametrize("subject", FAILING)
def test_model_that_raises(subject: str, tmp_path: Path, cache: Path) -> None:
    artifact = write_artifact(tmp_path / "bad", FAILING[subject], sample__json="{}")
    error = Checked(artifact, cache).only_error(ExitCode.MODEL)
    assert error.subject == subject
    assert "missing" in error.message or "not_installed_at_all" in error.message
    assert "preflight.py" not in error.message  # the user's frames, not ours


def test_answer_that_is_no_json(tmp_path: Path, cache: Path) -> None:
    score = "def load_model(): ...\ndef predict(data, model=None): return object()\n"
    artifact = write_artifact(tmp_path / "bad", score, sample__json="{}")
    assert Checked(artifact, cache).only_error(ExitCode.MODEL).subject == "predict()"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import ctypes; ctypes.string_at(0)", "was killed by SIGSEGV"),
        ("import os; os.abort()", "was killed by SIGABRT"),
        (
            "import os, sys; print('last words', file=sys.stderr, flush=True); os._exit(7)",
            "exited with code 7",
        ),
    ],
)
def test_model_that_ends_the_process(line: str, words: str, tmp_path: Path, cache: Path) -> None:
    error = Checked(write_artifact(tmp_path / "bad", f"{line}\n{GOOD}"), cache).only_error(ExitCode.MODEL)
    assert words in error.message
    assert "score.py" in error.message or "_exit" in line  # where it was
    assert "last words" in error.message or "_exit" not in line


def test_model_that_hangs_is_ended_with_its_children(tmp_path: Path, cache: Path) -> None:
    score = (
        "import subprocess, time\nchild = subprocess.Popen(['sleep', '60'])\n"
        f"open('{tmp_path}/pid', 'w').write(str(child.pid))\ntime.sleep(60)\n{GOOD}"
    )
    started = time.monotonic()
    done = Checked(write_artifact(tmp_path / "slow", score), cache, load_timeout=1.5)
    error = done.only_error(ExitCode.MODEL)
    assert "longer than 1.5 s" in error.message and "--load-timeout" in error.remedy
    assert time.monotonic() - started < 50, "the model sleeps for 60 s"
    child = int((tmp_path / "pid").read_text())
    eventually(lambda: not alive(child), "the end of its child")
