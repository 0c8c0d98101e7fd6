"""What the README and the changelog say of settings, exit codes, files and versions is so."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from pathlib import Path

from server import __main__, __version__, config, pages
from server.errors import ExitCode
from server.metrics import STATUSES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_setting_is_in_its_table() -> None:
    for _, known in config.known_settings():
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


def test_files_that_are_named_exist() -> None:
    tour = README.partition("## Source tour")[2]
    named = re.findall(r"`((?:server|tests|docs|bench|examples)/[\w/]+\.\w+)`((?:, `[\w/]+\.py`)*)", tour)
    assert len(named) > 10
    for first, others in named:
        folder = Path(first).parent
        for path in [Path(first), *(folder / name for name in re.findall(r"`([\w/]+\.py)`", others))]:
            assert (ROOT / path).is_file(), path
    for link in re.findall(r"\]\(([^):#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_module_is_in_the_tour() -> None:
    tour = README.partition("## Source tour")[2]
    for path in (ROOT / "server").rglob("*.py"):
        if not path.name.startswith("__"):
            assert f"{path.name}`" in tour, f"{path.name} is missing from the tour"


def test_the_picture_is_well_formed() -> None:
    root = xml.parse(ROOT / "docs" / "picture.svg").getroot()
    assert root.tag.endswith("svg") and root.get("viewBox")


def test_the_changelog_knows_this_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first and first[1] == __version__
