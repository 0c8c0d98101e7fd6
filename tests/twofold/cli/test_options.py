"""Options made from settings: names, help, choices, and what a command is called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import typer

from twofold.cli import options, program
from twofold.errors import UsageError
from twofold.settings import Catalogue, Checked, apart, setting


@dataclass(frozen=True, slots=True)
class Shape(Checked):
    sides: int = setting(3, "how many", low=3)
    filled: bool = setting(True, "whether it is filled")
    tone: str = setting("", "its colour")
    edge: str = setting("thin", "its line", among=("thin", "thick"))


@dataclass(frozen=True, slots=True)
class Place(Checked):
    at: tuple[str, ...] = setting((), "where; may be repeated")
    size: float = setting(1.5, "in metres")


@dataclass(frozen=True, slots=True)
class Drawing:
    shape: Shape = field(default_factory=Shape)
    place: Place = field(default_factory=Place)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)


CATALOGUE = Catalogue(Drawing, "DRAW_", "draw --help", "sides: 4", apart("DRAW_"))
PANELS = {"shape": "The shape", "place": "The place"}


def call(*arguments: str, panels: Mapping[str, str] = PANELS) -> dict[str, object]:
    """What the command is given for `arguments`, without the options that were not."""
    seen: dict[str, object] = {}

    def draw(**given: object) -> None:
        seen.update({name: value for name, value in given.items() if value not in (None, [])})

    options.sign(draw, [options.config_file(), *options.of_settings(CATALOGUE, panels, {"at": "X,Y"})])
    app = typer.Typer(add_completion=False)
    app.command()(draw)
    assert program.run(app, "draw", list(arguments)) == 0
    return seen


def test_what_was_not_given_is_none() -> None:
    assert call() == {}


def test_values_arrive_as_text() -> None:
    given = ("--sides", "many", "--no-filled", "--at", "a", "--at", "b", "--size", "2", "--config", "f")
    assert call(*given) == {
        "sides": "many", "filled": False, "at": ["a", "b"], "size": "2", "config_file": "f",
    }  # fmt: skip


def test_only_the_groups_of_the_panels_have_options() -> None:
    assert call("--size", "2", panels={"place": "The place"}) == {"size": "2"}
    with pytest.raises(UsageError, match=r"--sides"):
        call("--sides", "4", panels={"place": "The place"})


def test_help_says_meaning_default_and_choices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    call("--help")
    told = capsys.readouterr().out
    shape = ("The shape", "how many (default 3)", "(default true)", "--filled", "--no-filled", "thin|thick")
    for part in (*shape, "The place", "X,Y", "in metres (default 1.5)", "its colour"):
        assert part in told, told
    assert "its colour (default" not in told and "be repeated (default" not in told


@pytest.mark.parametrize(
    ("value", "text"), [(("a", "b"), "a, b"), (True, "true"), (1.5, "1.5"), ("", ""), (False, "false")]
)
def test_values_as_a_person_would_write_them(value: object, text: str) -> None:
    assert options.text(value) == text
