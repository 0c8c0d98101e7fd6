"""Sets of addresses, and the ways in which one address is written."""

from __future__ import annotations

import pytest

from twofold.net import networks
from twofold.net.networks import Networks


@pytest.mark.parametrize(
    ("texts", "address", "inside"),
    [
        (("10.0.0.0/8",), "10.255.0.1", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("192.0.2.7",), "192.0.2.7", True),
        (("192.0.2.7",), "192.0.2.8", False),
        (("10.0.0.0/8",), "::ffff:10.0.0.1", True),  # as a socket on :: says it
        (("::ffff:10.0.0.0/104",), "10.0.0.1", False),  # nobody has such an address here
        (("fd00::/8", "127.0.0.1"), "fd12::1", True),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("0.0.0.0/0",), "fd12::1", False),
        (("0.0.0.0/0", "::/0"), "", False),
        (("0.0.0.0/0", "::/0"), "unix", False),
        (("0.0.0.0/0", "::/0"), "010.0.0.1", False),
        ((), "127.0.0.1", False),
    ],
)
def test_membership(texts: tuple[str, ...], address: str, inside: bool) -> None:
    known = Networks(texts)
    assert (address in known) is inside
    assert (address in known) is inside  # and so when it is remembered
    assert bool(known) is bool(texts)


def test_the_memory_of_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "MAX_KNOWN", 10)
    known = Networks(("10.0.0.0/8",))
    assert all((f"10.0.0.{number}" in known) for number in range(100))
    assert len(known._known) <= 10
