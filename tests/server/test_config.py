"""Settings: four sources in their order, one parser, and complaints that name the place."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from twofold.errors import ConfigError, TwofoldError, UsageError
from twofold.server import config
from twofold.server.config import Config, HttpSettings, ReplicaSettings
from twofold.settings import parse


def load(text: str = "", environ: dict[str, str] | None = None, **options: object) -> Config:
    return config.load("", None, environ or {}, options)


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "twofold.yaml"
    path.write_text(text)
    return path


def test_defaults() -> None:
    settings = config.load("model", None, {}, {})
    assert settings.artifact == "model"
    assert settings.http == HttpSettings()
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 8080)
    assert {source for _, _, source, _ in config.CATALOGUE.listed(settings)} == {"default"}


def test_later_sources_win(tmp_path: Path) -> None:
    path = file(tmp_path, "port: 1\nhost: a\nspare: 1\nbacklog: 9\n")
    environ = {"TWOFOLD_PORT": "2", "TWOFOLD_HOST": "b", "PATH": "/bin"}
    settings = config.load("", path, environ, {"port": "3", "host": None})
    assert (settings.http.port, settings.http.host, settings.http.backlog) == (3, "b", 9)
    sources = {name: source for name, _, source, _ in config.CATALOGUE.listed(settings)}
    assert (sources["port"], sources["host"], sources["backlog"]) == ("--port", "TWOFOLD_HOST", f"{path}:4")


def test_every_setting_through_every_source(tmp_path: Path) -> None:
    """A value other than the default arrives, whichever way it comes."""
    for group, known in config.CATALOGUE.declared():
        text = _another(known)
        expected = parse(known, text)
        assert expected != known.default
        for settings in (
            config.load("", file(tmp_path, f"{known.name}: {text}\n"), {}, {}),
            config.load("", None, {f"TWOFOLD_{known.name.upper()}": text}, {}),
            config.load("", None, {}, {known.name: text}),
            config.load("", None, {}, {known.name: expected}),
        ):
            assert getattr(getattr(settings, group), known.name) == expected


def _another(known: dataclasses.Field[object]) -> str:
    if known.metadata["among"]:
        return str(known.metadata["among"][-1])
    if known.name == "socket":
        return "/run/elsewhere"
    return {bool: "no", int: "7", float: "1.25", str: "elsewhere"}[type(known.default)]


def test_names_are_unique_and_explained() -> None:
    names = [known.name for _, known in config.CATALOGUE.declared()]
    assert len(names) == len(set(names))
    for _, known in config.CATALOGUE.declared():
        assert (
            known.metadata["help"] and known.metadata["help"][0] == known.metadata["help"][0].lower()
        ) or (known.name == "ocpus")


def test_json_carries_all_values() -> None:
    settings = config.load("a b", None, {}, {"port": 0, "access_log": False, "ocpus": 1.5, "env": 'x"y'})
    assert config.CATALOGUE.from_json(config.CATALOGUE.to_json(settings)) == settings


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HttpSettings().port = 1  # type: ignore[misc]


def test_web_concurrency_is_the_weaker_name_of_replicas() -> None:
    assert load(environ={"WEB_CONCURRENCY": "3"}).replicas.replicas == 3
    assert load(environ={"WEB_CONCURRENCY": "3", "TWOFOLD_REPLICAS": "4"}).replicas.replicas == 4
    assert load(environ={"WEB_CONCURRENCY": "3"}, replicas="5").replicas.replicas == 5
    with pytest.raises(ConfigError, match="^WEB_CONCURRENCY: replicas must be a whole number"):
        load(environ={"WEB_CONCURRENCY": "many"})


def test_artifact_from_the_environment_and_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, "artifact: from-file\n")
    assert config.load("", path, {}, {}).artifact == "from-file"
    assert config.load("", path, {"TWOFOLD_ARTIFACT": "from-env"}, {}).artifact == "from-env"
    assert config.load("given", path, {"TWOFOLD_ARTIFACT": "from-env"}, {}).artifact == "given"
    assert config.load("", None, {"TWOFOLD_CONFIG": str(path)}, {}).artifact == "from-file"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("port: eight", "1: port must be a whole number, not 'eight'"),
        ("\nport: 70000", "2: port must be at most 65535"),
        ("port: -1", "1: port must be at least 0"),
        ("port: 80.5", "1: port must be a whole number"),
        ("port:", "1: port must be a whole number, not ''"),
        ("idle_timeout: .inf", "1: idle_timeout must be a number"),
        ("idle_timeout: inf", "1: idle_timeout must be a number"),
        ("idle_timeout: 0", "1: idle_timeout must be at least 0.001"),
        ("preload: all", "1: preload must be one of none, imports, model"),
        ("access_log: maybe", "1: access_log must be true or false"),
        ("host: a\nprot: 1", "2: there is no setting 'prot' (did you mean port?)"),
        ("host: a\nport: 1\nhost: b", "3: host is set twice (the first time in line 1)"),
        ("port: [1]", "1: port must be one plain value"),
        ("http:\n  port: 1", "1: http must be one plain value"),
        ("- port", "1: not a mapping"),
        ("port", "1: not a mapping"),
        ("port: 1\n  host: a", "2: not YAML"),
        ("port: 'a", "not YAML"),
        ("port: \x07", "not YAML"),
        ("? [a]\n: 1", "1: there is no setting"),
    ],
)
def test_the_place_of_a_fault_in_the_file(tmp_path: Path, text: str, complaint: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config.load("", path, {}, {})
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "host:\n", "access_log: NO\n", "port: ' 80 '\n"]
)
def test_files_that_are_fine(tmp_path: Path, text: str) -> None:
    assert isinstance(config.load("", file(tmp_path, text), {}, {}), Config)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load("", tmp_path / "absent.yaml", {}, {})
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load("", tmp_path, {}, {})
    broken = tmp_path / "broken.yaml"
    broken.write_bytes(b"host: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load("", broken, {}, {})


def test_the_place_of_a_fault_elsewhere() -> None:
    with pytest.raises(ConfigError, match="^TWOFOLD_PORT: port must be a whole number"):
        load(environ={"TWOFOLD_PORT": ""})
    with pytest.raises(ConfigError, match="^TWOFOLD_PROT: there is no setting 'prot'"):
        load(environ={"TWOFOLD_PROT": "1"})
    with pytest.raises(UsageError, match="^--idle-timeout: idle_timeout must be a number"):
        load(idle_timeout="nan")
    with pytest.raises(ConfigError, match="without NUL"):
        load(environ={"TWOFOLD_HOST": "a\0b"})


def test_values_out_of_limits_cannot_be_constructed() -> None:
    with pytest.raises(ConfigError, match="^port: port must be at most 65535"):
        HttpSettings(port=65536)
    with pytest.raises(ConfigError, match="^preload: preload must be one of"):
        ReplicaSettings(preload="some")
    with pytest.raises(ConfigError, match="whole number"):
        ReplicaSettings(replicas=True)


def test_arbitrary_text_is_a_value_or_a_clear_error(tmp_path: Path) -> None:
    generator = random.Random(7)
    alphabet = "port: host0189.-\n\t#'\"[]{}&*!|>%@`\\é\0\x85?,yesno"
    for _ in range(1500):
        path = file(tmp_path, "".join(generator.choices(alphabet, k=generator.randrange(40))))
        try:
            config.load("", path, {}, {})
        except TwofoldError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load().cache_folder() == tmp_path / "twofold"
    assert load().quarantine_folder() == tmp_path / "twofold" / "quarantine"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load().cache_folder() == tmp_path / ".cache" / "twofold"
    assert load(cache_dir="/c").quarantine_folder() == Path("/c/quarantine")
    assert load(quarantine_dir="~/q").quarantine_folder() == tmp_path / "q"
