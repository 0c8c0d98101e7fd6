"""The tables of states against a storm: nothing that happens to a proxy leaves them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loadbalancer.scenarios.test_storm import NARROW, SEED, WITHOUT, storm
from twofold.loadbalancer.proxy import downstream, exchange, upstream

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[3]
CHECKED = ROOT / "tests" / "support" / "loadbalancer" / "checked_states"


@pytest.mark.parametrize("module", [downstream, exchange, upstream])
def test_every_state_has_its_moves(module: object) -> None:
    moves: dict[int, tuple[int, ...]] = module.MOVES  # type: ignore[attr-defined]
    assert {state for targets in moves.values() for state in targets} <= moves.keys()


@pytest.mark.parametrize("options", [WITHOUT, NARROW], ids=["unlimited", "80 Mbps"])
def test_a_storm_stays_within_the_tables(tmp_path: Path, options: tuple[str, ...]) -> None:
    environ = {"PYTHONPATH": f"{CHECKED}:{ROOT}", "TWOFOLD_INTERPRETED": "1"}
    printed = storm(tmp_path, SEED, 4.0, *options, environ=environ)
    assert "illegal change of state" not in printed
