"""Settings of the load balancer: their sources, their complaints with key and line, and the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from twofold.errors import ConfigError, ResourceError, TwofoldError, UsageError
from twofold.loadbalancer import config, shared_memory
from twofold.loadbalancer.cli import commands
from twofold.loadbalancer.cli import entry as program
from twofold.loadbalancer.config import Config
from twofold.loadbalancer.supervision import startup_checks
from twofold.loadbalancer.supervision.resources import LOG_WRITERS_BLOCK, NUMBERS
from twofold.net import address
from twofold.server import config as instance
from twofold.settings import parse

ROOT = Path(__file__).parents[2]
ONE = {"upstream": ["http://127.0.0.1:9001"]}
# Of settings whose texts have a form: a value that fits.
FITTING = {
    "listen": "127.0.0.1:1, unix:/run/lb.sock",
    "upstream": "http://a:1, dns+http://pool:80",
    "allow": "10.0.0.0/8, ::1",
    "trusted_proxies": "127.0.0.1",
    "caller_header": "x-caller",
    "probe_path": "/health/ready",
    "status": "[::1]:9000",
    "maximum_bandwidth_mbps": "15",
}


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "balance.yaml"
    path.write_text(text)
    return path


def test_defaults() -> None:
    settings = config.load(None, {}, ONE)
    assert settings.listen.listen == ("127.0.0.1:8080",)
    assert settings.pool.upstream == ("http://127.0.0.1:9001",)
    assert (settings.bandwidth.bandwidth_mbps, settings.timeouts.predict_timeout) == (10.0, 60.0)
    assert settings.sources == {"upstream": "--upstream"}


def test_every_setting_through_every_source(tmp_path: Path) -> None:
    for group, known in config.CATALOGUE.declared():
        text = FITTING.get(known.name) or _another(known)
        if known.name in config.FILES:
            text = str(file(tmp_path, ""))
        expected = parse(known, text)
        assert expected != known.default
        name = known.name
        others = ONE | ({"tls_certificate": text} if name in ("tls_key", "tls_client_ca") else {})
        others.pop(name, None)
        path = tmp_path / "settings.yaml"
        path.write_text(f"{name}: '{text}'\n")
        for settings in (
            config.load(path, {}, others),
            config.load(None, {f"TWOFOLD_BALANCE_{name.upper()}": text}, others),
            config.load(None, {"TWOFOLD_BALANCE_CONFIG": str(path)}, others),
            config.load(None, {}, others | {name: text}),
        ):
            assert getattr(getattr(settings, group), name) == expected
            assert config.CATALOGUE.from_json(config.CATALOGUE.to_json(settings)) == settings


def _another(known: dataclasses.Field[object]) -> str:
    among: tuple[str, ...] = known.metadata["among"]
    if among:
        return next(word for word in among if word != known.default)
    return {bool: "no", int: "7", float: "1.25", str: "elsewhere"}[type(known.default)]


def test_lists(tmp_path: Path) -> None:
    path = file(
        tmp_path, "upstream:\n  - http://a:1\n  - unix:/run/a.sock\nlisten: ['*:80', '[::]:80']\nallow: []\n"
    )
    settings = config.load(path, {}, {})
    assert settings.pool.upstream == ("http://a:1", "unix:/run/a.sock")
    assert settings.listen.listen == ("*:80", "[::]:80")
    assert settings.access.allow == ()
    environ = {"TWOFOLD_BALANCE_UPSTREAM": "http://b:2 , http://c:3,"}
    assert config.load(path, environ, {}).pool.upstream == ("http://b:2", "http://c:3")
    options = {"upstream": ["http://d:4", "http://e:5,http://f:6"], "listen": None}
    settings = config.load(path, environ, options)
    assert settings.pool.upstream == (
        "http://d:4",
        "http://e:5",
        "http://f:6",
    )  # it replaces, and adds nothing
    assert settings.sources["upstream"] == "--upstream"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("upstream:\n  - http://a:1\n  - ftp://b:2\n", "3: upstream must be http://HOST:PORT, unix:/PATH or"),
        ("upstream: [http://a:1,\n http://b:x]", "2: upstream must be http://HOST:PORT"),
        ("upstream:\n- [http://a:1]", "1: upstream must be one plain value"),
        ("upstream: {a: 1}", "1: upstream must be one plain value"),
        ("\nbandwidth_mbps: [10]", "2: bandwidth_mbps must be one plain value"),
        ("\nbandwidth_mbps: ten", "2: bandwidth_mbps must be a number, not 'ten'"),
        ("bandwidth: 10", "1: there is no setting 'bandwidth' (did you mean bandwidth_mbps?)"),
        ("zzz: 10", "1: there is no setting 'zzz' (`twofold balance --help` lists them all)"),
        ("proxies: 16", "1: proxies must be at most 15, not 16"),
        ("accounting: raw", "1: accounting must be one of http, wire"),
        ("listen: 8080", "1: listen must be HOST:PORT or unix:/PATH, not '8080'"),
        ("listen: unix:run/a", "1: listen must be HOST:PORT or unix:/PATH"),
        ("listen: a:70000", "1: listen must be HOST:PORT or unix:/PATH"),
        ("listen: a:1, a:1", "1: listen has a:1 twice"),
        ("listen: a:1\nstatus: a:1", "2: status is an address of listen, too"),
        ("listen: ''", "1: listen must name an address"),
        ("allow: 10.0.0.1/8", "1: allow must be an address or a network such as 10.0.0.0/8"),
        ("caller_header: 'x caller'", "1: caller_header must be the name of a header"),
        ("probe_path: health", "1: probe_path must be a path such as /health"),
        ("maximum_bandwidth_mbps: 21", "1: maximum_bandwidth_mbps must be above 10 and at most 20"),
        ("bandwidth_mbps: 0\nmaximum_bandwidth_mbps: 1", "2: maximum_bandwidth_mbps must be above 0"),
        ("listen: a:1\ntls_key: /nowhere", "2: tls_key needs tls_certificate"),
        ("tls_certificate: /nowhere", "1: tls_certificate: /nowhere does not exist"),
        ("listen: a:1\nbandwidth_mbps: 1\nlisten: b:1", "3: listen is set twice (the first time in line 1)"),
        ("tls_certificate: /", "1: tls_certificate: / is no file"),
        ("bandwidth_mbps: 1e-7", "1: bandwidth_mbps is too little to pass anything"),
        ("caller_bandwidth_mbps: 0.0009", "1: caller_bandwidth_mbps is too little to pass anything"),
        ("listen: [a:1", "not YAML"),
    ],
)
def test_the_place_of_a_fault_in_the_file(tmp_path: Path, text: str, complaint: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config.load(path, {}, {} if "upstream" in text else ONE)
    assert str(caught.value).startswith(f"{path}:")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_faults_in_variables_and_options() -> None:
    with pytest.raises(ConfigError, match="^TWOFOLD_BALANCE_PROXIES: proxies must be at least 1"):
        config.load(None, {"TWOFOLD_BALANCE_PROXIES": "0"}, ONE)
    with pytest.raises(UsageError, match="^--queue-mb: queue_mb must be a number"):
        config.load(None, {}, ONE | {"queue_mb": "much"})
    with pytest.raises(ConfigError, match="no instance is named .name one with --upstream"):
        config.load(None, {}, {})


def test_variables_of_kubernetes_and_of_instances_are_ignored() -> None:
    environ = {
        "TWOFOLD_PORT": "x",
        "TWOFOLD_BALANCE_SERVICE_HOST": "10.0.0.1",
        "TWOFOLD_BALANCE_PORT": "tcp://10.0.0.1:80",
        "TWOFOLD_BALANCE_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert config.load(None, environ, ONE) == config.load(None, {}, ONE)
    assert instance.load("", None, {"TWOFOLD_BALANCE_UPSTREAM": "x"}, {}) == instance.Config()


def test_values_out_of_limits_cannot_be_constructed() -> None:
    with pytest.raises(ConfigError, match="^listen: listen must be HOST:PORT"):
        config.ListenSettings(listen=("x",))
    with pytest.raises(ConfigError, match="^upstream: upstream must be text"):
        config.PoolSettings(upstream="http://a:1")  # type: ignore[arg-type]


def test_there_are_blocks_for_two_generations_and_the_log_writer() -> None:
    assert (
        len(NUMBERS) == 2 * config.MAX_PROXIES
        and max(NUMBERS) < LOG_WRITERS_BLOCK < shared_memory.MAX_PROXIES
    )


@pytest.mark.parametrize(
    ("text", "name", "dns"),
    [
        ("http://127.0.0.1:9001", "http://127.0.0.1:9001", False),
        ("http://a/", "http://a:80", False),
        ("http://[::1]:5", "http://[::1]:5", False),
        ("unix:/run/a.sock", "unix:/run/a.sock", False),
        ("dns+http://pool.ns.svc:8080", "dns+http://pool.ns.svc:8080", True),
    ],
)
def test_addresses_of_instances(text: str, name: str, dns: bool) -> None:
    found = address.upstream(text)
    assert found is not None
    assert (found.name, found.dns) == (name, dns)
    assert address.upstream(found.name) == found


@pytest.mark.parametrize(
    "text",
    ["", "a:1", "https://a:1", "http://", "http://a:0", "http://a:1/x", "http://u@a:1", "http://*:1",
     "unix:a", "unix:/" + "x" * 107, "dns+unix:/a", "http://a:123456", "http://a b:1", "http://::1:1",
     "http://a..b:1", f"http://{'a' * 64}:1", "http://.a:1", f"http://{'.'.join(['a' * 63] * 4)}:1",
     "http://[:::::]:1", "unix:/a\nb", "unix:/a\0b"],
)  # fmt: skip
def test_invalid_addresses_of_instances(text: str) -> None:
    assert address.upstream(text) is None


def test_the_admin_socket_is_in_a_folder_of_ones_own() -> None:
    assert config.default_admin_path({"XDG_RUNTIME_DIR": "/run/user/7"}) == Path(
        "/run/user/7/twofold-balance/admin.sock"
    )
    own = Path(f"/tmp/twofold-balance-{os.getuid()}/admin.sock")
    assert config.default_admin_path({}) == config.default_admin_path({"XDG_RUNTIME_DIR": "x"}) == own
    assert config.load(None, {}, ONE | {"admin_socket": "/a/b"}).admin_path() == Path("/a/b")


# ---------------------------------------------------------------------- before anything starts


def test_a_file_that_is_missing_is_no_fault_of_the_command_line() -> None:
    with pytest.raises(ConfigError, match="^--tls-certificate: tls_certificate: /nowhere does not exist"):
        config.load(None, {}, ONE | {"tls_certificate": "/nowhere"})


def test_preflight_reads_the_files_that_settings_name(tmp_path: Path) -> None:
    members = tmp_path / "members"
    members.write_text("http://a:1\nhttp//b:2\n")
    with pytest.raises(ConfigError, match=rf"^{members}:2: 'http//b:2' is no instance"):
        startup_checks.verify(config.load(None, {}, {"upstream_file": str(members)}))
    pem = tmp_path / "cert.pem"
    pem.write_text("no certificate")
    with pytest.raises(ConfigError, match=f"{pem}: .*its key .name the key with tls_key"):
        startup_checks.verify(config.load(None, {}, ONE | {"tls_certificate": str(pem)}))
    token = tmp_path / "token"
    token.write_text("")
    with pytest.raises(ConfigError, match=str(token)):
        startup_checks.verify(config.load(None, {}, ONE | {"bearer_token_file": str(token)}))
    with pytest.raises(ResourceError, match="cannot write logs"):
        startup_checks.verify(config.load(None, {}, ONE | {"log_dir": str(pem / "logs")}))


# ---------------------------------------------------------------------- the command line


def called(*arguments: str) -> tuple[Config, bool]:
    seen: list[tuple[Config, bool]] = []

    def run(settings: Config, check: bool) -> int:
        seen.append((settings, check))
        return 0

    commands.application(run)(list(arguments), standalone_mode=False)
    return seen[0]


def test_every_setting_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.application(lambda settings, check: 0)(["--help"])
    shown = capsys.readouterr().out
    for _, known in config.CATALOGUE.declared():
        assert f"--{known.name.replace('_', '-')} " in shown.replace("\n", " ").replace("/", " "), known.name


def test_options_reach_the_settings() -> None:
    settings, check = called(
        "--listen", "a:1", "--listen", "b:2", "--upstream", "http://c:3,http://d:4", "--bandwidth-mbps", "20",
        "--no-access-log", "--check",
    )  # fmt: skip
    assert settings.listen.listen == ("a:1", "b:2")
    assert settings.pool.upstream == ("http://c:3", "http://d:4")
    assert settings.bandwidth.bandwidth_mbps == 20.0
    assert not settings.log.access_log and check


def test_complaints_of_the_command_line() -> None:
    for arguments, complaint in (
        (["--bandwith-mbps", "3"], "No such option: --bandwith-mbps"),
        (["--bandwidth-mbps", "x"], "--bandwidth-mbps: bandwidth_mbps must be a number"),
        (["extra"], "unexpected extra argument"),
    ):
        with pytest.raises(TwofoldError) as caught:
            program.balance(arguments)
        assert complaint in str(caught.value)
        assert caught.value.exit_code == 2


def test_the_programs_are_commands_of_twofold(tmp_path: Path) -> None:
    bad = file(tmp_path, "upstream: http://a:1\nproxies: none\n")
    done = subprocess.run(
        [sys.executable, "-m", "twofold", "balance", "--config", str(bad)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.startswith(f"twofold: {bad}:2: proxies must be a whole number, not 'none'")
    assert done.stdout == ""
    done = subprocess.run(
        [sys.executable, "-m", "twofold", "balance", "--upstream", "http://a:1", "--check"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["upstream"] == ["http://a:1"]
    helped = subprocess.run(
        [sys.executable, "-m", "twofold", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert "twofold balance-ctl" in re.sub(r"\s+", " ", helped)
