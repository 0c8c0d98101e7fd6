"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import Instance, serve

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="session")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """examples/echo with two replicas."""
    with serve(EXAMPLES / "echo", tmp_path_factory.mktemp("echo"), "--replicas", "2") as instance:
        yield instance
