"""The request corpus: raw bytes in http1_cases/{valid,invalid}/NAME.http, expectations in two TOML files."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "http1_cases"
ANY = "any"  # in `answers`: every status but a failure of the server


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes = field(repr=False)
    why: str
    answers: tuple[int | str, ...]  # statuses in order; for a refused request the last one is its own
    closes: bool  # the server closes behind the last answer
    truncated: bool  # the client leaves in the middle of a request
    head: dict[str, Any]  # what the parser makes of the first head

    def __str__(self) -> str:
        return self.name


@cache
def cases(kind: str) -> tuple[Case, ...]:
    """All cases of `valid` or `invalid`; a file without expectation, or the reverse, is an error."""
    table = tomllib.loads((FOLDER / f"{kind}.toml").read_text(encoding="utf-8"))
    files = {path.stem: path for path in (FOLDER / kind).glob("*.http")}
    if files.keys() != table.keys():
        raise AssertionError(f"{kind}: only on one side: {sorted(files.keys() ^ table.keys())}")
    return tuple(_case(name, files[name].read_bytes(), entry) for name, entry in table.items())


def _case(name: str, data: bytes, entry: dict[str, Any]) -> Case:
    why, truncated = entry.pop("why"), entry.pop("truncated", False)
    answers = tuple(entry.pop("answers", ())) or tuple(entry.pop("before", ()))
    closes = entry.pop("closes", True)
    if "status" in entry:
        answers += (entry.pop("status"),)
    return Case(name, data, why, answers, closes, truncated, entry)
