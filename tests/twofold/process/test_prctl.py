"""The two copies of prctl: one for our interpreter, one for the model's."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]


def code(path: str) -> str:
    """All that stands behind the module's docstring."""
    return (ROOT / path).read_text().split('"""', 2)[2]


def test_the_copies_are_equal() -> None:
    assert code("twofold/process/prctl.py") == code("server/replica/prctl.py")
