"""The command line: options made from settings, errors in one line with their exit code, the display."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.instance_process import alive, free_port, serve, write_artifact
from twofold import __main__, __version__, errors
from twofold.errors import ExitCode, ModelError, TwofoldError
from twofold.server import config, embedded
from twofold.server.artifact.artifact import Artifact
from twofold.server.artifact.diagnostics import Diagnostic
from twofold.server.cli import display
from twofold.server.supervision.events import (
    Event,
    ForkServerStarted,
    InstanceReady,
    Note,
    ReplicaChanged,
    Stopped,
    Stopping,
)  # fmt: skip
from twofold.server.supervision.status import shown_sample

ECHO = Path(__file__).parents[3] / "examples" / "echo"
GOOD = "def load_model():\n    return 1\n\ndef predict(data, model=load_model()):\n    return model\n"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("TWOFOLD_") or name == "WEB_CONCURRENCY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("TWOFOLD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """In this process; for what does not fork."""
    monkeypatch.setattr(sys, "argv", ["twofold", *arguments])
    return __main__.main()


def start(*arguments: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twofold", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


# ---------------------------------------------------------------------- usage


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    said = capsys.readouterr().out
    assert re.fullmatch(
        rf"twofold {re.escape(__version__)} \(Python 3\.[\d.]+, hot path (compiled|interpreted)\)\n", said
    )


def test_help_names_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "serve", "--help") == 0
    shown = capsys.readouterr().out
    for _, known in config.CATALOGUE.declared():
        assert f"--{known.name.replace('_', '-')}" in shown
    assert "--no-access-log" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["sreve"], ExitCode.USAGE, "sreve"),
        (["serve", "--prot", "1"], ExitCode.USAGE, "--prot"),
        (["serve", "a", "b"], ExitCode.USAGE, "unexpected extra argument"),
        (["serve", "--port"], ExitCode.USAGE, "--port"),
        (["serve"], ExitCode.USAGE, "ARTIFACT: no artifact is named"),
        (["check"], ExitCode.USAGE, "ARTIFACT: no artifact is named"),
        (["check", "--port", "1", "a"], ExitCode.USAGE, "--port"),
        (["serve", "a", "--port", "x"], ExitCode.USAGE, "--port: port must be a whole number, not 'x'"),
        (["serve", "a", "--preload", "x"], ExitCode.USAGE, "--preload: preload must be one of"),
        (["serve", "--prot", "1"], ExitCode.USAGE, "`twofold serve --help`"),
        (["check", "--nothing"], ExitCode.USAGE, "`twofold check --help`"),
        (["sreve"], ExitCode.USAGE, "`twofold --help`"),
        (["serve", "a", "--config", "absent.yaml"], ExitCode.CONFIG, "absent.yaml: cannot read"),
        (["serve", "absent"], ExitCode.ARTIFACT, "absent"),
        (["serve", str(ECHO), "--sample", "absent.json"], ExitCode.CONFIG, "absent.json"),
        (["serve", str(ECHO), "--log-dir", "/dev/null/logs"], ExitCode.RESOURCES, "/dev/null/logs"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    code: ExitCode,
    complaint: str,
) -> None:
    assert call(monkeypatch, *arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("twofold: ") and printed.err.count("\n") == 1
    assert complaint in printed.err


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_settings_file_that_cannot_be_read_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, by_variable: bool
) -> None:
    (tmp_path / "t.yaml").touch()
    refuse(monkeypatch, "t.yaml")
    options = [] if by_variable else ["--config", str(tmp_path / "t.yaml")]
    if by_variable:
        monkeypatch.setenv("TWOFOLD_CONFIG", str(tmp_path / "t.yaml"))
    assert call(monkeypatch, "settings", *options) == ExitCode.CONFIG
    assert "Permission denied (check --config, or TWOFOLD_CONFIG)" in capsys.readouterr().err


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As if files of that name had no permissions, which root would not notice; click asks os.access()."""
    read, access = io.open, os.access

    def guarded(file: Any, *arguments: Any, **more: Any) -> Any:
        if isinstance(file, str | Path) and Path(file).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return read(file, *arguments, **more)

    def asked(path: Any, mode: int, **more: Any) -> bool:
        return Path(os.fsdecode(path)).name != name and access(path, mode, **more)

    monkeypatch.setattr(io, "open", guarded)
    monkeypatch.setattr("builtins.open", guarded)
    monkeypatch.setattr(os, "access", asked)


@pytest.mark.parametrize("by_variable", [False, True])
@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_missing_sample_is_the_same_fault_everywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, by_variable: bool
) -> None:
    if by_variable:
        monkeypatch.setenv("TWOFOLD_SAMPLE", "absent.json")
    options = [] if by_variable else ["--sample", "absent.json"]
    assert call(monkeypatch, command, str(ECHO), *options) == ExitCode.CONFIG
    assert "there is no file" in "".join(capsys.readouterr())


UNFIT = {
    "syntax": ("def predict(:", {}, ExitCode.ARTIFACT, "is not valid Python in line 1"),
    "signature": (GOOD.replace("data", "x"), {}, ExitCode.ARTIFACT, "must be named 'data', not 'x'"),
    "nothing in it": ("", {}, ExitCode.ARTIFACT, "score.py defines none"),
    "unreadable": (GOOD, {}, ExitCode.ARTIFACT, "cannot be read: Permission denied"),
    "sample": (
        GOOD,
        {"sample__json": "[1,"},
        ExitCode.ARTIFACT,
        "sample.json is not JSON in line 1, col",
    ),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_check_and_serve_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, fault: str
) -> None:
    """The same exit code for the same fault, and nothing has been started to find it."""
    score, files, code, complaint = UNFIT[fault]
    artifact = write_artifact(tmp_path / "unfit", score, **files)
    if fault == "unreadable":
        refuse(monkeypatch, "score.py")
    for command in ("check", "serve"):
        assert call(monkeypatch, command, str(artifact)) == code
        printed = capsys.readouterr()
        assert complaint in (printed.out if command == "check" else printed.err)
    assert printed.err.count("\n") == 1 and printed.err.startswith("twofold: ")


def test_more_than_one_fault_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "serve", str(write_artifact(tmp_path / "empty", ""))) == ExitCode.ARTIFACT
    assert "`twofold check` shows 1 more" in capsys.readouterr().err


def test_no_arguments_shows_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch) == ExitCode.USAGE
    assert "serve" in capsys.readouterr().out


def test_a_bad_variable_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TWOFOLD_PORT", "eighty")
    assert call(monkeypatch, "settings") == ExitCode.CONFIG
    assert "TWOFOLD_PORT: port must be a whole number" in capsys.readouterr().err


def test_variables_of_a_kubernetes_service_called_twofold_are_no_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TWOFOLD_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("TWOFOLD_PORT_80_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("TWOFOLD_SERVICE_HOST", "10.0.0.1")
    assert call(monkeypatch, "settings") == ExitCode.OK
    assert "8080" in capsys.readouterr().out


def test_settings_show_value_and_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("host: 0.0.0.0\n")
    monkeypatch.setenv("TWOFOLD_SPARE", "1")
    assert call(monkeypatch, "settings", "--config", str(path), "--port", "9", "--no-access-log") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: tuple(row[1:3]) for row in rows}
    assert found["host"] == ("0.0.0.0", f"{path}:1")
    assert found["port"] == ("9", "--port")
    assert found["spare"] == ("1", "TWOFOLD_SPARE")
    assert found["access_log"] == ("false", "--access-log")
    assert found["backlog"] == ("4096", "default")
    assert len(rows) == 1 + len(list(config.CATALOGUE.declared()))


def test_a_bug_is_called_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(config, "load", broken)
    assert call(monkeypatch, "settings") == ExitCode.INTERNAL
    assert "ZeroDivisionError: oops" in (shown := capsys.readouterr().err)
    assert "a bug in twofold" in shown


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(config, "load", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert call(monkeypatch, "settings") == 130
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_check_that_is_ended_leaves_nothing_behind(tmp_path: Path, number: int, code: int) -> None:
    score = f"import os, time\nopen('{tmp_path}/pid', 'w').write(f'{{os.getpid()}}.')\ntime.sleep(60)\n{GOOD}"
    command = [sys.executable, "-m", "twofold", "check", str(write_artifact(tmp_path / "slow", score))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    trying = tmp_path / "pid"
    try:
        eventually(lambda: trying.exists() and trying.read_text().endswith("."), "the model's import", 20)
        process.send_signal(number)
        _, printed = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == code
    assert printed.split("\n")[-2] == "twofold: interrupted" and "Traceback" not in printed
    assert not alive(int(trying.read_text()[:-1]))


def test_a_closed_stdout_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "twofold", "settings"], stdout=sink, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (0, b"")


# ---------------------------------------------------------------------- failures to start


def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = start("serve", str(ECHO), "--port", str(taken.getsockname()[1]))
    assert done.returncode == ExitCode.ADDRESS
    last = done.stderr.splitlines()[-1]
    assert last.startswith("twofold: cannot bind 127.0.0.1:") and "another port" in last


@pytest.mark.parametrize("preload", ["none", "model"])
@pytest.mark.parametrize(
    ("score", "code", "complaint"),
    [
        ("import no_such_module\n" + GOOD, ExitCode.MODEL, "no_such_module"),
        (GOOD.replace("return 1", "raise ValueError('no weights')"), ExitCode.MODEL, "no weights"),
        (GOOD.replace("return model", "raise ValueError('no such row')"), ExitCode.MODEL, "no such row"),
    ],
)
def test_models_that_do_not_start(
    tmp_path: Path, score: str, code: ExitCode, complaint: str, preload: str
) -> None:
    artifact = write_artifact(tmp_path / "model", score, sample__json="1")
    options = ["--port", str(free_port()), "--replicas", "1", "--preload", preload]
    done = start("serve", str(artifact), *options)
    assert done.returncode == code, done.stderr
    assert "server/replica" not in done.stderr  # the user's frames, not ours
    last = done.stderr.splitlines()[-1]
    assert last.startswith("twofold: ") and complaint in last and "correct " in last
    fell_back = "preload: model is not kept" in done.stderr  # and why, before it was tried without
    assert len(re.findall(f"Error:.*{complaint}", done.stderr)) == 1 + fell_back  # not again and again
    assert "stop" not in done.stderr and "in flight" not in done.stderr
    checked = start("check", str(artifact))
    assert checked.returncode == code, checked.stdout
    assert complaint in checked.stdout
    assert f"(exit code {int(code)})" in checked.stdout.splitlines()[-1]


def test_replicas_read_a_binary_sample_as_check_does(tmp_path: Path) -> None:
    score = "def load_model(): ...\ndef predict(data, model=None): return data.decode('latin-1')\n"
    artifact = write_artifact(tmp_path / "raw", score)
    (tmp_path / "request.bin").write_bytes(b"[1]")  # JSON by its looks, but not by its name
    sample = str(tmp_path / "request.bin")
    with serve(artifact, tmp_path / "run", "--replicas", "1", "--sample", sample) as it:
        assert "octet-stream' --data-binary @" in it.printed()


def test_check_of_a_good_artifact() -> None:
    done = start("check", str(ECHO))
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "fit to serve"


def test_nothing_is_imported_that_serving_does_not_need() -> None:
    """`twofold.server.cli.commands` is imported by every start, which pays for what it imports."""
    code = "import twofold.server.cli.commands, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"rich.console", "yaml", "fsspec", "prometheus_client", "starlette", "uvloop", "asyncio", "numpy"}
    assert not heavy & set(loaded)


# ---------------------------------------------------------------------- errors in words


def test_error_lines() -> None:
    assert str(TwofoldError("broken", "mend it", "here:3")) == "here:3: broken (mend it)"
    assert str(TwofoldError("broken")) == "broken"
    trace = "score.py does not import: Traceback (most recent call last):\n  File ...\nKeyError: 'x'"
    assert str(ModelError(trace, "look")) == "score.py does not import: KeyError: 'x' (look)"
    several = (
        "it failed: Traceback (most recent call last):\n  File ...\n    x\nValueError: one\n  two\nthree"
    )
    assert str(ModelError(several)) == "it failed: ValueError: one"
    assert str(TwofoldError("")) == ""


def test_exit_codes_are_a_contract() -> None:
    assert [int(code) for code in ExitCode] == list(range(9))
    assert all(code.meaning for code in ExitCode)
    given = {kind.exit_code for kind in _subclasses(TwofoldError)}
    assert given == set(ExitCode) - {ExitCode.OK, ExitCode.INTERNAL}
    assert issubclass(errors.UsageError, TwofoldError)


def _subclasses(kind: type[TwofoldError]) -> Iterator[type[TwofoldError]]:
    for found in kind.__subclasses__():
        if found.__module__ == "twofold.errors":
            yield found


def test_failure_prints_a_traceback_before_the_line() -> None:
    stream = io.StringIO()
    display.failure(
        ModelError("load_model() failed: Traceback (most recent call last):\n  a\nKeyError: 1"), stream
    )
    assert stream.getvalue().splitlines() == [
        "Traceback (most recent call last):",
        "  a",
        "twofold: load_model() failed: KeyError: 1",
    ]
    stream = io.StringIO()
    display.failure(ModelError("it failed: Traceback (most recent call last):\n  a\nKeyError: 1\n2"), stream)
    assert stream.getvalue().splitlines()[-3:] == ["KeyError: 1", "2", "twofold: it failed: KeyError: 1"]


# ---------------------------------------------------------------------- display


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/predict"),
        ("http://0.0.0.0:80", "http://127.0.0.1:80/predict"),
        ("http://[::]:80", "http://[::1]:80/predict"),
        ("http://[fe80::1]:80", "http://[fe80::1]:80/predict"),
    ],
)
def test_curl_line(url: str, target: str) -> None:
    assert display.curl(url, "").endswith(f"'[[1, 2, 3]]' {target}")
    assert "--data-binary '@/a b.json'" in display.curl(url, "/a b.json")
    assert "octet-stream" in display.curl(url, "/a.bin")
    assert "--data-binary '[\"a b\"]' " in display.curl(url, "sample.json", '["a b"]\n')
    assert "--data-binary @sample.json " in display.curl(url, "sample.json", "[1,\n2]")
    assert "--data-binary @sample.json " in display.curl(url, "sample.json", "1" * 1000)


def test_a_command_never_names_the_cache(tmp_path: Path) -> None:
    """The sample of a zip lies where only we look: its text is shown instead of that place."""
    text, folder = '{"rows": [1, 2]}', tmp_path / "cache"
    zipped = Artifact(folder, "iris", None, folder / "sample.json", tmp_path / "iris.zip")
    line = display.ready_line(InstanceReady("http://127.0.0.1:1", 1, 1.0, *shown_sample(zipped, text)))
    assert f"--data-binary '{text}' " in line and "cache" not in line
    own = Artifact(folder, "iris", None, tmp_path / "mine.json", tmp_path / "iris.zip")
    assert shown_sample(own, text) == (str(tmp_path / "mine.json"), "")
    plain = Artifact(folder, "iris", None, folder / "sample.json")
    assert shown_sample(plain, text)[0] == str(folder / "sample.json")


def test_a_failed_start_announces_no_requests_in_flight() -> None:
    assert display.sentence(Stopping(served=False, failed=True)) == ""
    assert display.sentence(Stopped(served=False, failed=True)) == ""
    assert display.sentence(Stopping(served=False, failed=False)) == "stopping"
    assert display.sentence(Stopped(served=False, failed=False)) == "stopped"
    assert "in flight" in display.sentence(Stopping(served=True, failed=True))


def test_a_dead_replica_takes_one_line() -> None:
    reason = f"load_model() failed: {errors.TRACEBACK}\n  File x\nKeyError: 1"
    line = display.replica_line(ReplicaChanged(3, "dead", reason=reason))
    assert line == "replica 3 dead: load_model() failed: KeyError: 1"
    assert display.replica_line(ReplicaChanged(3, "loading", reason=reason)) == "replica 3 loading"


@pytest.mark.parametrize(("count", "words"), [(1, "1 replica ready"), (2, "2 replicas ready")])
def test_singular_and_plural(count: int, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    ready = InstanceReady("", count, 1.0)
    embedded.announce(ready)
    assert words in capfd.readouterr().err
    assert words in display.ready_line(ready)


def announce_all(announce: display.Announcer) -> None:
    for done in (0, 4_000_000):
        announce.unpacking("env.tar.gz", done, 4_000_000)
    events: list[Event] = [
        ForkServerStarted("3.10.13", 0.0),
        ReplicaChanged(0, "loading"),
        ReplicaChanged(0, "ready", load_s=1.5, memory_mb=24.2),
        Note("careful [bold]"),
        InstanceReady("http://127.0.0.1:1", replicas=1, start_s=2.0),
        ReplicaChanged(0, "dead", reason="killed by SIGSEGV"),
        Stopping(served=True, failed=False),
        Stopped(served=True, failed=False),
    ]
    for event in events:
        announce(event)


EXPECTED = (
    "env.tar.gz",
    "Python 3.10.13",
    "replica 0 ready: loaded in 1.50 s, 24 MB",
    "careful [bold]",
    "serving at http://127.0.0.1:1",
    "curl -H 'content-type: application/json'",
    "replica 0 dead: killed by SIGSEGV",
    "stopping",
    "stopped",
)


def test_plain_announcements(capfd: pytest.CaptureFixture[str]) -> None:
    announce = display.Announcer(io.StringIO())
    announce_all(announce)
    announce.close()
    printed = capfd.readouterr().err
    position = 0
    for text in EXPECTED:
        position = printed.index(text, position)
    assert "\x1b" not in printed
    assert re.search(r"warning replica 0 dead", printed)


def test_announcements_on_a_terminal() -> None:
    """In a process of its own, whose standard error is a terminal."""
    code = (
        "import sys\n"
        "from twofold.server.cli import display\n"
        "from tests.server.cli.test_commands import announce_all\n"
        "announce = display.Announcer(sys.stderr)\n"
        "assert announce.console is not None\n"
        "announce_all(announce)\n"
        "assert announce.console is None and announce.bar is None\n"
    )
    parent, child = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environ.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=child,
        env=environ,
        cwd=ECHO.parents[1],
    )
    os.close(child)
    printed = b""
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # how Linux says that the last writer has closed a terminal
            break
        if not chunk:
            break
        printed += chunk
    os.close(parent)
    assert process.wait(10) == 0, printed.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed.decode())
    position = 0
    for expected in EXPECTED:
        assert expected in text[position:], text
        position = text.index(expected, position)
    assert "\x1b[" in printed.decode()


def test_unpacking_in_plain_steps(capfd: pytest.CaptureFixture[str]) -> None:
    announce = display.Announcer(io.StringIO())
    for done in range(1001):
        announce.unpacking("env", done * 1000, 1_000_000)
    assert capfd.readouterr().err.count("env") == display.PLAIN_STEPS + 1


def test_verdicts() -> None:
    stream = io.StringIO()
    show = display.verdicts(stream)
    show(Diagnostic("ok", "score.py", "fits"))
    show(Diagnostic("error", "model", "Traceback:\n  x", "mend it", ExitCode.MODEL))
    display.verdict(ExitCode.MODEL, stream)
    lines = stream.getvalue().splitlines()
    assert lines[0].split() == ["ok", "score.py", "fits"]
    assert lines[2].strip() == "x" and lines[3].strip() == "-> mend it"
    assert lines[-1] == "not fit to serve: score.py does not import, load or predict (exit code 6)"
