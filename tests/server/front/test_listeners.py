"""What an instance listens on: its port, its Unix socket, and what may be wrong with them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.instance_process import Instance, serve, write_artifact
from twofold.errors import AddressError, ConfigError
from twofold.server.config import AUTO, NONE, HttpSettings
from twofold.server.front.listeners import Listeners, listen

SLOW = """
import time
def load_model():
    return 0
def predict(data):
    time.sleep(data)
    return data
"""


def listening(host: str, port: int = 0) -> socket.socket:
    return listen(HttpSettings(host=host, port=port, socket=NONE)).port


def test_a_free_port_is_bound_and_does_not_block() -> None:
    with listening("127.0.0.1") as listener:
        assert listener.getsockname()[1] > 0 and not listener.getblocking()
        socket.create_connection(listener.getsockname()).close()


def test_a_port_in_use_is_the_operators_to_resolve() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            AddressError, match=f"cannot bind 127.0.0.1:{port}: Address already in use"
        ) as caught:
            listening("127.0.0.1", port)
    assert "choose another port" in str(caught.value)


def test_a_port_is_free_again_at_once() -> None:
    with listening("127.0.0.1") as first:
        port = first.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        first.setblocking(True)
        served, _ = first.accept()
        served.close()  # our side closes first, so the port stays in TIME_WAIT
        client.close()
    listening("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64 + ".invalid", ""])
def test_a_host_that_does_not_exist(host: str) -> None:
    with pytest.raises(AddressError, match="cannot resolve host"):
        listening(host)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(AddressError, match="this machine has no such address"):
        listening("192.0.2.1")  # RFC 5737: for documentation only


def test_a_privileged_port_needs_privileges() -> None:
    """In a child without CAP_NET_BIND_SERVICE, or as whoever we are if that is nobody special."""
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first <= 1:
        pytest.skip("every port is free for all here")
    script = (
        "import encodings.idna, os\n"  # loaded before the interpreter's folder may be out of reach
        "from twofold.server.front.listeners import listen\nfrom twofold.server.config import HttpSettings\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: listen(HttpSettings(host='127.0.0.1', port=1))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.startswith("AddressError") and "ports below 1024 need privileges" in done.stdout


# ---------------------------------------------------------------------- the Unix socket


def locally(name: str) -> Listeners:
    return listen(HttpSettings(port=0, socket=name))


def dial(name: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    try:
        client.connect("\0" + name[1:] if name.startswith("@") else name)
    except OSError:
        client.close()
        raise
    return client


def post(client: socket.socket, value: object) -> None:
    body = json.dumps(value).encode()
    head = "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    client.sendall((head % len(body)).encode() + body)


def answered(client: socket.socket) -> bytes:
    """The body of an answer whose body is short; nothing when the connection has ended."""
    data = b""
    while b"\r\n\r\n" not in data or data.endswith(b"\r\n\r\n"):
        piece = client.recv(65536)
        if not piece:
            return b""
        data += piece
    assert data.startswith(b"HTTP/1.1 200 "), data
    return data.partition(b"\r\n\r\n")[2]


def test_an_abstract_socket_is_the_default_and_can_be_switched_off() -> None:
    listeners = locally(AUTO)
    assert listeners.local is not None and not listeners.local.getblocking()
    dial(listeners.local_name).close()
    listeners.retire()
    with pytest.raises(ConnectionRefusedError):
        dial(listeners.local_name)
    for name in (NONE, ""):
        without = locally(name)
        assert (without.local, without.local_name) == (None, "")
        without.retire()


def test_a_path_leaves_no_file_behind(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listeners = locally(str(path))
    dial(str(path)).close()
    listeners.close()  # a child's end
    assert path.exists()
    locally(str(path)).retire()  # over what a killed process has left
    assert not path.exists()


def test_a_path_that_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listeners = locally(str(path))
    with pytest.raises(AddressError, match="Address already in use") as caught:
        locally(str(path))
    assert str(path) in str(caught.value) and "choose another socket" in str(caught.value)
    dial(str(path)).close()  # it still listens
    listeners.retire()
    path.write_text("precious")
    with pytest.raises(AddressError, match="Address already in use"):
        locally(str(path))
    assert path.read_text() == "precious"
    with pytest.raises(AddressError, match="its folder must exist"):
        locally(str(tmp_path / "nowhere" / "socket"))


@pytest.mark.parametrize("name", ["relative/path", "automatic", "/" + "x" * 107])
def test_names_that_are_no_socket(name: str) -> None:
    with pytest.raises(ConfigError, match=r"socket.*a path from / on"):
        HttpSettings(socket=name)


def test_connections_of_the_backlog_are_accepted_and_later_ones_refused() -> None:
    listeners = locally(AUTO)
    waiting = dial(listeners.local_name)
    listeners.stop_connecting()
    listeners.stop_connecting()  # by the second front
    with pytest.raises(ConnectionRefusedError):
        dial(listeners.local_name)
    assert listeners.local is not None
    accepted, _ = listeners.local.accept()
    accepted.close()
    waiting.close()
    listeners.retire()


def told(instance: Instance) -> str:
    return str(instance.health()["socket"])


@pytest.mark.parametrize("kind", ["auto", "path"])
def test_predict_over_a_unix_socket(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "s")
    options = () if kind == "auto" else ("--socket", path)
    with serve(write_artifact(tmp_path / "model", SLOW), tmp_path / "run", *options) as instance:
        name = told(instance)
        assert name.startswith("@twofold-") if kind == "auto" else name == path
        with dial(name) as client:
            for value in (0, 0.01, 0):
                post(client, value)
                assert json.loads(answered(client)) == value
            client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b'"ready"' in answered(client)
            post(client, 2)
            instance.holds(1)
            instance.process.send_signal(signal.SIGTERM)
            assert json.loads(answered(client)) == 2  # a request in flight is finished
        assert instance.process.wait(10) == 0
        assert not os.path.exists(path)


def test_a_killed_supervisor_leaves_no_socket(tmp_path: Path) -> None:
    with serve(write_artifact(tmp_path / "model", SLOW), tmp_path / "run") as instance:
        name = told(instance)
        instance.process.kill()
        eventually(lambda: name.encode() not in Path("/proc/net/unix").read_bytes(), "the socket's end")
        with pytest.raises(ConnectionRefusedError):
            dial(name)
