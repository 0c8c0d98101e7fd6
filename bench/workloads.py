"""What is asked of every server: model, body, connections.  Pure data; writes bodies where it is told.

The same `score.py` (bench/models/) runs in every server, and every server gets the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODELS = Path(__file__).resolve().parent / "models"
ROW = [5.1, 3.5, 1.4, 0.2]
SIZES = {"46 B": 46, "10 KB": 10 * 1024, "1 MB": 1024 * 1024}
TEXT = 64 * 1024  # characters of one string in the body of 1 MB
CONNECTIONS = (1, 32, 128)


@dataclass(frozen=True)
class Body:
    """A JSON body and the answer that a right server gives to it."""

    name: str
    content: bytes
    answer: Any


@dataclass(frozen=True)
class Cell:
    """One place of the table: a model asked with one body over so many connections."""

    model: str
    body: str
    connections: int

    @property
    def name(self) -> str:
        return f"{self.model}, {self.body}, {self.connections} conn"


def rows_body(name: str) -> Body:
    """A list of rows, padded with spaces (which JSON allows) to the exact size.

    A row is four numbers; in the largest body it is a long text, as an image in base64 would be.
    A megabyte of numbers takes any decoder 30 ms, which would hide every difference between servers.
    """
    return padded(name, SIZES[name], "A" * TEXT if name == "1 MB" else ROW)


def padded(name: str, size: int, row: Any = ROW) -> Body:
    """As many rows as fit into `size` bytes, at least 2, then spaces."""
    text = json.dumps(row, separators=(",", ":"))
    count = (size - 1) // (len(text) + 1)
    content = "[" + ",".join([text] * count) + "]"
    return Body(name, content.ljust(size).encode(), {"rows": count})


def iris_body() -> Body:
    return Body("1 row", json.dumps([ROW]).encode(), {"prediction": [0]})


def bodies(model: str) -> dict[str, Body]:
    found = [iris_body()] if model == "iris" else [rows_body(name) for name in SIZES]
    return {body.name: body for body in found}


HEADLINE = Cell("rows", "46 B", 32)
SINGLE = Cell("rows", "46 B", 1)
QUICK_CELLS = (HEADLINE, SINGLE)
FULL_CELLS = (
    *(Cell("rows", body, connections) for body in SIZES for connections in CONNECTIONS),
    Cell("iris", "1 row", 1),
    Cell("iris", "1 row", 32),
)
