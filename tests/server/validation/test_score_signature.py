"""What load_model() and predict() must look like, told from their text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from twofold.server.validation.score_signature import check

LOAD = "def load_model(): return 1\n"
PREDICT = "def predict(data, model=load_model()): return 1\n"
AHEAD = f"3.{sys.version_info.minor + 1}"


def complaints(tmp_path: Path, text: str | bytes, version: str = "") -> list[str]:
    score = tmp_path / "score.py"
    score.write_bytes(text.encode() if isinstance(text, str) else text)
    return [f"{found.level} {found.subject}: {found.message}" for found in check(score, version)]


@pytest.mark.parametrize(
    "text",
    [
        LOAD + PREDICT,
        "import not_installed\nraise SystemExit\n" + LOAD + PREDICT,  # nothing is run
        "from functools import lru_cache\n@lru_cache(maxsize=10)\n" + LOAD + PREDICT,
        "def load_model(name='model.bin', *rest, **more): ...\n" + PREDICT,
        LOAD + "def predict(data): ...\n",
        LOAD + "def predict(data, model): ...\n",  # as in artifacts for model groups
        LOAD + "def predict(data, model=None, input_schema_path='x'): ...\n",
        LOAD + "def predict(data, /, *, model, deep=True): ...\n",
        LOAD + "def predict(data: dict[str, int], *more: int, **others: int) -> list[int]: ...\n",
        "def predict(wrong): ...\n" + LOAD + PREDICT,  # the last one counts
        "# -*- coding: latin-1 -*-\n# \xe9\n" + LOAD + PREDICT,
        "pattern = '\\d'\nif pattern is 'x': pass\n" + LOAD + PREDICT,  # warnings are not our business
    ],
)
def test_fits(text: str, tmp_path: Path) -> None:
    assert complaints(tmp_path, text.encode("latin-1")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PREDICT, "load_model(): score.py defines none"),
        (LOAD, "predict(): score.py defines none"),
        ("load_model = lambda: 1\n" + PREDICT, "load_model(): score.py defines none"),
        ("if True:\n    " + LOAD + PREDICT, "load_model(): score.py defines none"),
        ("class A:\n    " + LOAD + PREDICT, "load_model(): score.py defines none"),
        ("from model import load_model\n" + PREDICT, "load_model(): score.py defines none"),
        ("async " + LOAD + PREDICT, "load_model(): is a coroutine function"),
        (LOAD + "async " + PREDICT, "predict(): is a coroutine function"),
        ("def load_model(folder): ...\n" + PREDICT, "load_model(): needs folder"),
        ("def load_model(*, a, b=1, c): ...\n" + PREDICT, "load_model(): needs a, c"),
        (LOAD + "def predict(): ...", "predict(): its first argument must be named 'data', but it has none"),
        (LOAD + "def predict(x): ...", "predict(): its first argument must be named 'data', not 'x'"),
        (LOAD + "def predict(*data): ...", "predict(): its first argument must be named 'data'"),
        (LOAD + "def predict(data, path): ...", "predict(): path must have a default"),
        (LOAD + "def predict(data, *, path): ...", "predict(): path must have a default"),
        (LOAD + "def predict(data\n", "score.py: is not valid Python in line 2"),
        (b"\x00\x01", "score.py: is not valid Python"),
        (b"x = '\xff\xfe'", "score.py: is not valid Python"),
        ("(" * 100_000, "score.py: is not valid Python"),
    ],
)
def test_does_not_fit(text: str | bytes, message: str, tmp_path: Path) -> None:
    found = complaints(tmp_path, text)
    assert any(line.startswith(f"error {message}") for line in found), found


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    assert len(complaints(tmp_path, "def load_model(a): ...\ndef predict(x, y): ...\n")) == 3


def test_a_signature_of_a_newer_grammar_is_left_to_its_python(tmp_path: Path) -> None:
    assert complaints(tmp_path, "new syntax\n", AHEAD)[0].startswith("warning score.py: is not valid Python")
    assert complaints(tmp_path, "new syntax\n", "3.7")[0].startswith("error score.py: is not valid Python")


def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "score.py").mkdir()
    assert "cannot be read" in check(tmp_path / "score.py")[0].message
