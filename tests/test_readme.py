"""What the README and the changelog say of settings, exit codes, files and versions is so."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from pathlib import Path

from twofold import __main__, __version__
from twofold.errors import ExitCode
from twofold.server import config
from twofold.server.front import pages
from twofold.server.telemetry.metrics import STATUSES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_setting_is_in_its_table() -> None:
    for _, known in config.CATALOGUE.declared():
        default = str(known.default).lower() if isinstance(known.default, bool) else str(known.default)
        cell = f"`{default}`" if default else ""
        assert f"| `{known.name}` | {cell} | {known.metadata['help']} |" in README


def test_every_exit_code_is_in_its_table() -> None:
    for code in ExitCode:
        assert f"| {int(code)} | {code.meaning} |" in README


def test_what_signals_end_is_in_the_table_too() -> None:
    assert f"| {__main__.INTERRUPTED}, {__main__.TERMINATED} | ended by Ctrl-C, or by SIGTERM" in README


def test_every_status_is_in_its_table_and_in_openapi() -> None:
    table = README.partition("| status | when |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    named = {int(status) for row in rows for status in row.split(", ")}
    assert named == {int(status) for status in pages.REFUSALS}
    assert named >= set(STATUSES) - {200}


def tour() -> Iterator[tuple[Path, str]]:
    """(folder, row) of every row of the source tour."""
    text = README.partition("## Source tour")[2].partition("\n## ")[0]
    for part in re.split(r"^\*\*", text, flags=re.MULTILINE)[1:]:
        folder = ROOT / re.findall(r"`(\w+)/`", part)[0]
        for row in re.findall(r"^\| (`.*) \|$", part, re.MULTILINE):
            yield folder, row


def test_files_that_are_named_exist() -> None:
    found = 0
    for folder, row in tour():
        rooms = [folder, *(folder / room for room in re.findall(r"`([\w/]+)/`", row))]
        for name in re.findall(r"`(\w+\.\w+)`", row):
            assert any((room / name).is_file() for room in rooms), f"{name} is not in {rooms}"
            found += 1
    assert found > 60
    for link in re.findall(r"\]\(([^):#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_room_is_in_the_tour() -> None:
    named = {folder / room for folder, row in tour() for room in re.findall(r"`([\w/]+)/`", row)}
    for top in ("twofold", "server", "loadbalancer"):
        for init in (ROOT / top).rglob("__init__.py"):
            room = init.parent
            if room != ROOT / top and not {"_native", "__pycache__"} & set(room.parts):
                assert room in named, f"{room} is missing from the tour"


def test_each_part_of_the_tour_fits_a_screen() -> None:
    text = README.partition("## Source tour")[2].partition("\n## ")[0]
    for part in re.split(r"^\*\*", text, flags=re.MULTILINE):
        assert len(part.splitlines()) <= 24


def test_the_picture_is_well_formed() -> None:
    root = xml.parse(ROOT / "docs" / "picture.svg").getroot()
    assert root.tag.endswith("svg") and root.get("viewBox")


def test_the_changelog_knows_this_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first and first[1] == __version__
