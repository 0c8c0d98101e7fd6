"""Listening sockets: what is wrong with an address is said with what helps."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from twofold.errors import AddressError
from twofold.net import binding


def test_a_port_that_listens_and_does_not_block() -> None:
    with binding.tcp("127.0.0.1", 0, 16, "here", "host") as listener:
        assert not listener.getblocking()
        socket.create_connection(listener.getsockname()).close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".invalid"])
def test_a_host_that_is_none_names_the_setting(host: str) -> None:
    with pytest.raises(AddressError, match="cannot resolve host") as found:
        binding.tcp(host, 80, 16, "here", "listen")
    assert found.value.remedy == "set listen"


def test_an_address_that_cannot_be_had() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(AddressError, match="cannot bind here: Address already in use") as found,
    ):
        binding.tcp("127.0.0.1", other.getsockname()[1], 16, "here", "host")
    assert found.value.remedy == "choose another port, or stop what listens there"
    with pytest.raises(AddressError, match="cannot bind here") as found:
        binding.tcp("192.0.2.1", 0, 16, "here", "listen")  # RFC 5737: for documentation only
    assert found.value.remedy == "this machine has no such address: set listen"


def test_a_path_is_taken_from_the_dead_and_not_from_the_living(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    first = binding.unix(str(path), 16, "here")
    with pytest.raises(AddressError, match="cannot bind here: Address already in use") as found:
        binding.unix(str(path), 16, "here")
    assert found.value.remedy == "choose another socket, or stop what listens there"
    first.close()
    second = binding.unix(str(path), 16, "here")
    binding.retire(second)
    assert not path.exists() and second.fileno() == -1


def test_a_path_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="its folder must exist"):
        binding.unix(str(tmp_path / "none" / "in.sock"), 16, "here")


def test_a_name_without_a_file() -> None:
    listener = binding.unix(f"\0twofold-test-{id(object())}", 16, "auto")
    assert isinstance(listener.getsockname(), bytes)
    binding.retire(listener)
