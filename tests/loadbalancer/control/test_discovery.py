"""Who names instances: the watched file, the resolver, and what a predecessor has heard of both."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import ConfigError
from twofold.loadbalancer.control.discovery import (
    INTERVAL_S,
    SETTLED_S,
    Discovery,
    Names,
    WatchedFile,
    parse_file,
)
from twofold.loadbalancer.control.endpoint import Endpoint
from twofold.loadbalancer.endpoint_record import ADMIN, DNS, FILE, SETTINGS
from twofold.net.address import Address, Target

A, B = "http://127.0.0.1:9001", "http://127.0.0.1:9002"


def names(text: str) -> list[str]:
    return [upstream.name for upstream in parse_file(text, "pool")]


@pytest.mark.parametrize(
    "text",
    [
        f"{A}\n{B}\n",
        f"# ours\n\n{A} # the old one\n   {B}",
        f"- {A}\n- {B} # the new one\n",
        f"---\n- '{A}'\n- \"{B}\"\n",
        f"[{A}, {B}]",
        f"{A}\r\n{B}/\r\n{A}\r\n",
    ],
)
def test_lines_and_yaml_lists(text: str) -> None:
    assert names(text) == [A, B]


def test_every_form_of_an_instance() -> None:
    text = "unix:/run/a.sock\ndns+http://models:9001\nhttp://[::1]:9001\nhttp://host"
    assert names(text) == [
        "unix:/run/a.sock",
        "dns+http://models:9001",
        "http://[::1]:9001",
        "http://host:80",
    ]
    assert names("") == names("# nobody\n") == names("[]") == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"{A}\nftp://host\n", "pool:2"),
        (f"# one\n- {A}\n- http://\n", "pool:3"),
        (f"- {A}\n- [unclosed\n", "pool:3"),
        ("- a: 1\n", "pool:1"),
        (f"[{A},\n http://host:99999]", "pool:2"),
    ],
)
def test_faults_are_named_with_their_line(text: str, place: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_file(text, "pool")
    assert str(raised.value).startswith(place)


# ---------------------------------------------------------------------- the watched file


def write(path: Path, text: str, age: float = 1.0) -> None:
    path.write_text(text)
    stamp = time.time() - age
    os.utime(path, (stamp, stamp))


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    write(path, A)
    file = WatchedFile(str(path))
    assert file.look() and not file.look()
    write(path, f"{A}\n{B}", age=2)
    assert file.look() and len(file.upstreams) == 2
    other = tmp_path / "other"
    write(other, B, age=2)
    other.rename(path)  # as a careful writer does
    assert file.look() and [each.name for each in file.upstreams] == [B]


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    write(path, f"{A}\n{B}")
    file = WatchedFile(str(path))
    assert file.look()
    write(path, f"{A}\nhttp://127.0.0.1:900", age=0)
    assert not file.look() and file.pause_s == SETTLED_S
    write(path, f"{A}\n{B}\nhttp://127.0.0.1:9003", age=2 * SETTLED_S)
    assert file.look() and file.pause_s == INTERVAL_S and len(file.upstreams) == 3


@pytest.mark.parametrize("bad", ["http://a\nrubbish", "", "\n# all gone\n", "\udcff"])
def test_a_bad_or_empty_file_changes_nothing_and_is_reported_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], bad: str
) -> None:
    path = tmp_path / "pool"
    write(path, A)
    file = WatchedFile(str(path))
    assert file.look()
    path.write_bytes(bad.encode("utf-8", "surrogateescape"))
    os.utime(path, (1, 1))
    assert not file.look() and not file.look()
    assert [each.name for each in file.upstreams] == [A]
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "the old instances stay" in said and str(path) in said


def test_a_file_that_vanishes_changes_nothing_and_may_come_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pool"
    write(path, A)
    file = WatchedFile(str(path))
    assert file.look()
    path.unlink()
    assert not file.look() and not file.look() and file.upstreams
    assert capfd.readouterr().err.count("No such file") == 1
    write(path, B)
    assert file.look() and file.upstreams[0].name == B


# ---------------------------------------------------------------------- names


class Resolver:
    """The loop's resolver; `says` is what it answers: addresses, an exception, or nothing at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.says: list[str] | Exception | None = []
        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", self.answer)

    async def answer(self, *given: Any, **options: Any) -> list[Any]:
        if self.says is None:
            await asyncio.sleep(3600)
        if isinstance(self.says, Exception):
            raise self.says
        assert self.says is not None
        return [
            (socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 9001))
            for host in self.says
        ]


UPSTREAM = Target(Address("models", 9001), dns=True)


async def ask_in_turn(resolver: Resolver) -> None:
    known = Names()
    resolver.says = ["10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.2"]
    assert await known.resolve(UPSTREAM)
    assert known.addresses(UPSTREAM) == [Address("10.0.0.1", 9001), Address("10.0.0.2", 9001)]
    resolver.says.reverse()  # resolvers rotate their answers
    assert not await known.resolve(UPSTREAM)
    resolver.says = ["fd00::1"]
    assert await known.resolve(UPSTREAM)
    assert str(known.addresses(UPSTREAM)[0]) == "[fd00::1]:9001"


async def fail_in_turn(resolver: Resolver, capfd: pytest.CaptureFixture[str]) -> None:
    known = Names()
    known.remember(UPSTREAM.name, Address("10.0.0.9", 9001))
    for failure in (socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long"), None):
        resolver.says = failure
        assert not await known.resolve(UPSTREAM)
        assert known.addresses(UPSTREAM) == [Address("10.0.0.9", 9001)]
    assert capfd.readouterr().err.count("Name or service not known; what it stood for before holds") == 1
    resolver.says = ["10.0.0.9"]
    assert not known.heard and await known.resolve(UPSTREAM) and known.heard


def test_a_name_stands_for_the_addresses_of_one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(ask_in_turn(Resolver(monkeypatch)))


def test_while_the_resolver_fails_its_last_answer_holds(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("twofold.loadbalancer.control.discovery.PATIENCE_S", 0.02)
    asyncio.run(fail_in_turn(Resolver(monkeypatch), capfd))


# ---------------------------------------------------------------------- all of them


def test_the_predecessors_instances_stay_until_file_and_resolver_answer(tmp_path: Path) -> None:
    file = tmp_path / "missing"
    before = [
        Endpoint(A, Address("127.0.0.1", 9001), FILE, 0),
        Endpoint("http://10.0.0.1:9001", Address("10.0.0.1", 9001), DNS, 1, origin="dns+http://models:9001"),
        Endpoint("http://10.1.0.1:9001", Address("10.1.0.1", 9001), DNS, 2, origin="dns+http://others:9001"),
        Endpoint("http://10.2.0.1:9001", Address("10.2.0.1", 9001), ADMIN, 3),
    ]
    sources = Discovery.of(["dns+http://models:9001", B], str(file), before)
    wanted = sources.wanted()
    assert not sources.certain
    assert {name: who.source for name, who in wanted.items()} == {
        B: SETTINGS, A: FILE, "http://10.0.0.1:9001": DNS, "http://10.1.0.1:9001": DNS,
    }  # fmt: skip
    assert wanted["http://10.1.0.1:9001"].origin == "dns+http://others:9001"  # the file had named it
    write(file, f"{A}\n{B}")
    assert sources.file is not None and sources.file.look()
    wanted = sources.wanted()
    assert set(wanted) == {A, B, "http://10.0.0.1:9001"} and wanted[B].source == FILE
    assert not sources.certain
    sources.names.heard.add("dns+http://models:9001")
    assert sources.certain
