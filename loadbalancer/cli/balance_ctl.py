"""`twofold balance-ctl`: controls a running load balancer over its admin socket.

Touches that socket, and standard output.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import typer

from twofold.cli import program
from twofold.errors import AddressError, ConfigError, TwofoldError, UsageError
from twofold.loadbalancer.config import default_admin_path

if TYPE_CHECKING:
    from rich.console import Group

PROGRAM = "twofold balance-ctl"
PATIENCE_S = 10.0  # timeout of a call
POLL_S = 0.2  # time between two polls of the state
HANDOVER_S = 1.0  # the socket may be missing for this time, between two controllers
COLUMNS = ("instance", "state", "in hand", "requests/s", "share", "latency", "failures")

SOCKET = typer.Option(
    "", "--socket", "--admin-socket",
    help="The admin socket (default: $TWOFOLD_BALANCE_ADMIN_SOCKET, or your own folder's).",
    metavar="PATH", show_default=False,
)  # fmt: skip
AS_JSON = typer.Option(False, "--json", help="As JSON.", show_default=False)
WAIT = typer.Option(
    0.0, "--wait", help="Wait so long for its requests to end.", metavar="SECONDS", show_default=False
)
NAME = typer.Argument(help="Its name, or HOST:PORT.", metavar="NAME")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Look at a running load balancer, and tell it what to do.",
)


# ---------------------------------------------------------------------- the socket


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        until = time.monotonic() + HANDOVER_S
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            try:
                self.sock.connect(self._path)
                return
            except (ConnectionRefusedError, FileNotFoundError):
                self.sock.close()
                if time.monotonic() > until:
                    raise
                time.sleep(POLL_S / 4)


class AdminClient:
    """Calls the admin API."""

    def __init__(self, chosen: str) -> None:
        text = chosen or os.environ.get("TWOFOLD_BALANCE_ADMIN_SOCKET", "")
        self.path = str(Path(text).expanduser()) if text else str(default_admin_path(os.environ))

    def call(self, method: str, target: str, body: object = None) -> Any:
        """The JSON response. Raises AddressError without a server, UsageError (4xx) or TwofoldError (5xx)."""
        text = b"" if body is None else json.dumps(body).encode()
        connection = _Connection(self.path)
        try:
            connection.request(method, target, text, {"content-type": "application/json"})
            answer = connection.getresponse()
            status, found = answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            remedy = "start one with `twofold balance`, or name its socket with --socket"
            raise AddressError(f"no load balancer answers at {self.path}: {why}", remedy) from None
        finally:
            connection.close()
        if status >= 500:
            raise TwofoldError(found["message"])
        if status >= 400:
            raise UsageError(found["message"])
        return found

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", "/state")
        return found


# ---------------------------------------------------------------------- commands


@app.command()
def state(socket: str = SOCKET, as_json: bool = AS_JSON) -> None:
    """Show the pool, bandwidth and latency."""
    found = AdminClient(socket).state()
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _console().print(_picture(found))


@app.command()
def watch(socket: str = SOCKET) -> None:
    """Show them as they move, until Ctrl-C."""
    from rich.live import Live

    admin = AdminClient(socket)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ends the loop below
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(_picture(admin.state()), console=_console(), auto_refresh=False) as screen,
    ):
        while True:
            time.sleep(0.5)
            screen.update(_picture(admin.state()), refresh=True)


@app.command()
def bandwidth(
    mbps: float = typer.Argument(help="10^6 bit/s; 0 is unlimited.", metavar="MBPS"),
    maximum: float = typer.Option(
        0.0, "--maximum", help="Raise it up to this under load.", metavar="MBPS", show_default=False
    ),
    socket: str = SOCKET,
) -> None:
    """Change the bandwidth, at once; no connection notices."""
    found = AdminClient(socket).call("PUT", "/bandwidth", {"mbps": mbps, "max_mbps": maximum})
    print(_bandwidth(found))


@app.command()
def add(
    url: str = typer.Argument(help="HOST:PORT or unix:/PATH.", metavar="URL"), socket: str = SOCKET
) -> None:
    """Add an instance, or let a drained one take requests again."""
    found = AdminClient(socket).call("POST", "/instances", {"url": url})
    hope = "; it gets requests once a probe finds it well" if found["state"] == "down" else ""
    print(_sentence(found) + hope)


@app.command()
def drain(name: str = NAME, wait: float = WAIT, socket: str = SOCKET) -> None:
    """Let an instance finish what it has, and give it nothing more."""
    admin = AdminClient(socket)
    found = admin.call("POST", f"/instances/{quote(name, safe='')}/drain")
    _until(admin, found, wait, lambda one: one is None or not one["outstanding"])


@app.command()
def remove(name: str = NAME, wait: float = WAIT, socket: str = SOCKET) -> None:
    """Drain an instance, then forget it."""
    admin = AdminClient(socket)
    found = admin.call("DELETE", f"/instances/{quote(name, safe='')}")
    _until(admin, found, wait, lambda one: one is None)


@app.command()
def reload(socket: str = SOCKET) -> None:
    """Read the settings again, and start the new code; bad settings change nothing."""
    admin = AdminClient(socket)
    before = admin.state()
    admin.call("POST", "/reload")
    for _ in range(int(PATIENCE_S / POLL_S)):
        time.sleep(POLL_S)
        try:
            now = admin.state()
        except AddressError:  # between two controllers
            continue
        if now["started"] != before["started"]:
            print("reloaded")
            return
        if now["reloads_refused"] != before["reloads_refused"]:
            raise ConfigError(f"not reloaded, and nothing has changed: {now['reloads_refused']['why']}")
    why = "it waits until the generation before has drained"
    raise ConfigError(f"not reloaded within {PATIENCE_S:g} s; until then nothing changes", why)


def _until(admin: AdminClient, one: dict[str, Any], seconds: float, done: Callable[[Any], bool]) -> None:
    """Print the instance's state; poll up to `seconds` until `done`. Raises TwofoldError at the timeout."""
    name, until = one["name"], time.monotonic() + seconds
    now: dict[str, Any] | None = one
    while not done(now) and time.monotonic() < until:
        time.sleep(POLL_S)
        now = next((each for each in admin.call("GET", "/instances") if each["name"] == name), None)
    print(_sentence(now) if now else f"{name} has left; it may be stopped")
    if seconds and not done(now):
        raise TwofoldError(f"{name} has not finished within {seconds:g} s", "it goes on draining")


# ---------------------------------------------------------------------- output


def _sentence(one: dict[str, Any]) -> str:
    if one["state"] == "drain":
        left = one["outstanding"]
        return (
            f"{one['name']} drains, {left} in hand"
            if left
            else f"{one['name']} is drained; it may be stopped"
        )
    why = f": {one['why']}" if one["why"] else ""
    return f"{one['name']} is {one['state']}{why}"


def _bandwidth(band: dict[str, Any]) -> str:
    if not band["mbps"]:
        return "bandwidth is unlimited"
    upto = (
        f", up to {band['maximum_mbps']:g} under load" if band["maximum_mbps"] > band["minimum_mbps"] else ""
    )
    return f"bandwidth is {band['mbps']:g} Mbps{upto}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def _row(one: dict[str, Any]) -> Iterable[str]:
    credits = f" of {one['credits']}" if one["credits"] else ""
    why = f" ({one['why']})" if one["why"] else ""
    failures = sum(one["failures"].values())
    return (
        one["name"], one["state"] + why, f"{one['outstanding']}{credits}", f"{one['per_second']:g}",
        f"{one['share']:.0%}", _ms(one["latency_ms"]), str(failures),
    )  # fmt: skip


def _picture(found: dict[str, Any]) -> Group:
    from rich.box import SIMPLE
    from rich.console import Group
    from rich.table import Table

    band, asked, latency = found["bandwidth"], found["requests"], found["latency_ms"]
    used = f"{band['in_mbps']:.3g} in, {band['out_mbps']:.3g} out"
    reasons = {**asked["refused"], "unauthorised": asked["unauthorised"]}
    refused = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    share = f", {band['utilisation']:.0%} used" if band["mbps"] else ""
    pace = f"{asked['per_second']:g} requests/s, p50 {_ms(latency['p50'])}, p99 {_ms(latency['p99'])}"
    lines = [
        f"{_bandwidth(band)}; now {used}{share}",
        f"{pace}; {asked['inside']} in hand, {asked['waiting']} waiting",
        f"refused: {refused or 'none'}",
    ]
    tones = {"up": "green", "down": "red", "ejected": "yellow", "drain": "dim"}
    table = Table(box=SIMPLE, pad_edge=False)
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
    for one in found["instances"]:
        table.add_row(*_row(one), style=tones.get(one["state"]) if one["state"] != "up" else None)
    return Group(*lines, table)


def _console() -> Any:
    from rich.console import Console

    # Lines in a file or pipe are not wrapped at the terminal's width.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)


def run(arguments: list[str]) -> int:
    """One call of `twofold balance-ctl`. Raises as program.run."""
    return program.run(app, PROGRAM, arguments)
