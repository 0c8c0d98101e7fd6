"""The model's environment, whatever names it: found, unpacked once, activated, and refused with a reason.

The archives here are small: their bin/python passes everything on to the interpreter of the tests.
tests/test_conda_pack.py has a real one.
"""

from __future__ import annotations

import functools
import http.server
import io
import multiprocessing
import os
import re
import signal
import stat
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from twofold.errors import EnvironmentFailure, ResourceError, TwofoldError
from twofold.server.artifact.artifact import Runtime
from twofold.server.config import EnvironmentSettings
from twofold.server.environment import archive_source
from twofold.server.environment.environment import Environment, prepare

CONTEXT = multiprocessing.get_context("fork")
OURS = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHON = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
UNPACK = "import os, sys\nopen(os.path.join(os.path.dirname(sys.argv[0]), 'unpacked'), 'a').write('once ')\n"
FILES = {"bin/python": PYTHON, "bin/conda-unpack": UNPACK, "conda-meta/history": "made by a test\n"}


def nothing(what: str, done: int, total: int) -> None:
    """For a caller who does not care about progress."""


def pack(path: Path, **changes: str | None) -> Path:
    """An archive of FILES; `changes` by name with _ for / and None to leave one out."""
    files = FILES | {name.replace("__", "/").replace("_", "-"): text for name, text in changes.items()}
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            if text is None:
                continue
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text.encode()), 0o755
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., EnvironmentSettings]:
    return functools.partial(EnvironmentSettings, cache_dir=str(tmp_path / "cache"))


Settings = Callable[..., EnvironmentSettings]


def environments(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache" / "environments"
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    return [name for name in found if not name.endswith(".lock")]


# ---------------------------------------------------------------------- nothing named, or an interpreter


def test_default_is_our_own_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    found = prepare(None, EnvironmentSettings(), nothing)
    assert found == Environment(Path(sys.executable), OURS, None, dict(os.environ), "default")
    assert prepare(Runtime(python_version=OURS), EnvironmentSettings(), nothing) == found


def test_default_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    found = prepare(None, EnvironmentSettings(default_python=sys.executable), nothing)
    assert (found.version, found.name) == (OURS, "default")
    assert "PYTHONPATH" not in found.variables
    assert found.variables["PYTHONNOUSERSITE"] == "1"


@pytest.mark.parametrize("version", [OURS, OURS + ".99"])
def test_only_major_and_minor_are_compared(version: str) -> None:
    assert prepare(Runtime(python_version=version), EnvironmentSettings(), nothing).version == OURS


def test_wrong_version() -> None:
    with pytest.raises(EnvironmentFailure, match=f"asks for Python 3.7.*default has {OURS}") as caught:
        prepare(Runtime(python_version="3.7"), EnvironmentSettings(), nothing)
    assert "INFERENCE_PYTHON_VERSION" in caught.value.remedy


@pytest.mark.parametrize(
    ("program", "match"),
    [
        ("#!/bin/sh\necho 2.7.18", "is Python 2.7.18"),
        ("#!/bin/sh\necho 3.6.1", "is Python 3.6.1"),
        ("#!/bin/sh\necho broken >&2; exit 127", "exited with code 127: broken"),
        ("#!/bin/sh\n(echo x: command not found; echo advice) >&2; exit 127", "127: x: command not found$"),
        ("#!/bin/sh\nkill -SEGV $$", "was killed by SIGSEGV"),
        ("#!/bin/sh\necho hello", "does not work"),
        ("#!/no/such/shell\n", "cannot run"),
        ("\x7fELF, but of nothing", "cannot run"),
    ],
)
def test_programs_that_are_no_interpreter(
    program: str, match: str, tmp_path: Path, settings: Settings
) -> None:
    file = tmp_path / "python"
    file.write_text(program)
    file.chmod(0o755)
    with pytest.raises(EnvironmentFailure) as caught:
        prepare(None, settings(env=str(file)), nothing)
    assert re.search(match, caught.value.message)


@pytest.mark.parametrize("program", ["/bin/ls", "/bin/sh", "/no/such/python"])
def test_default_python_that_is_no_interpreter(program: str) -> None:
    """The setting is named, and our own question to the interpreter is not shown."""
    with pytest.raises(EnvironmentFailure) as caught:
        prepare(None, EnvironmentSettings(default_python=program), nothing)
    said = str(caught.value)
    assert said.startswith(f"--default-python: {program} ") and caught.value.remedy.startswith(
        "name a Python"
    )
    assert "import sys" not in said and "version_info" not in said and "-I" not in said


def test_zstd_archive(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "env.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600))
    with pytest.raises(EnvironmentFailure, match="zstd is not supported, but tar .* and zip are") as caught:
        prepare(None, settings(env=str(tmp_path / "env.tar.zst")), nothing)
    assert ".tar.gz" in caught.value.remedy


@pytest.mark.parametrize("named", ["nothing-of-that-name", "no/such/file.tar.gz"])
def test_nothing_there(named: str, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        prepare(None, settings(env=named), nothing)
    assert named in str(caught.value)
    assert environments(tmp_path) == []


# ---------------------------------------------------------------------- a folder


def make_prefix(prefix: Path, **scripts: str) -> Path:
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").write_text(PYTHON)
    (prefix / "bin" / "python").chmod(0o755)
    (prefix / "etc/conda/activate.d").mkdir(parents=True)
    for name, text in scripts.items():
        (prefix / "etc/conda/activate.d" / f"{name}.sh").write_text(text)
    return prefix


def test_folder_is_activated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/ours")
    monkeypatch.setenv("CONDA_PREFIX", "/ours")
    monkeypatch.setenv("KEPT", "two\nlines = kept")
    prefix = make_prefix(
        tmp_path / "with space",
        b_second="export ORDER=${ORDER}b\nunset GOES",
        a_first='export ORDER=a WHERE="$CONDA_PREFIX"\necho noise\nset -- changed\nfalse',
    )
    monkeypatch.setenv("GOES", "away")
    found = prepare(None, EnvironmentSettings(env=str(prefix)), nothing)
    variables = found.variables
    assert found.python == prefix / "bin" / "python" and found.prefix == prefix
    assert variables["ORDER"] == "ab" and variables["WHERE"] == str(prefix)
    assert variables["CONDA_PREFIX"] == str(prefix)
    assert variables["PATH"] == f"{prefix}/bin:{os.environ['PATH']}"
    assert variables["KEPT"] == "two\nlines = kept"
    assert not {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "GOES"} & set(variables)
    assert not [name for name in variables if name.startswith("_twofold")]


@pytest.mark.parametrize(
    ("script", "match"),
    [
        ("echo why >&2; exit 3", "exited with code 3: why"),
        ("kill -KILL $$", "SIGKILL"),
    ],
)
def test_activation_script_that_ends_the_shell(script: str, match: str, tmp_path: Path) -> None:
    prefix = make_prefix(tmp_path / "prefix", only=script)
    with pytest.raises(EnvironmentFailure, match=match):
        prepare(None, EnvironmentSettings(env=str(prefix)), nothing)


def test_virtual_environment(tmp_path: Path) -> None:
    prefix = make_prefix(tmp_path / "venv")
    (prefix / "pyvenv.cfg").write_text("")
    found = prepare(None, EnvironmentSettings(env=str(prefix / "bin" / "python")), nothing)
    assert found.variables["VIRTUAL_ENV"] == str(prefix)
    assert found.variables["PATH"].startswith(f"{prefix}/bin:")


def test_folder_without_python(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="has no bin/python"):
        prepare(None, EnvironmentSettings(env=str(tmp_path)), nothing)


# ---------------------------------------------------------------------- an archive


def unpacked_times(found: Environment) -> int:
    assert found.prefix is not None
    return (found.prefix / "bin" / "unpacked").read_text().count("once")


def test_archive_is_unpacked_once(tmp_path: Path, settings: Settings) -> None:
    archive = pack(tmp_path / "my env.tar.gz")
    runtime = Runtime(env_path=str(archive), python_version=OURS)
    seen: list[str] = []
    found = prepare(runtime, settings(), lambda what, done, total: seen.append(what))
    assert prepare(runtime, settings(), nothing) == found
    assert found.name == "my env" and found.version == OURS
    assert unpacked_times(found) == 1
    assert {"hashing", "unpacking", "adjusting paths"} == set(seen)
    copy = tmp_path / "copy.tar.gz"
    copy.write_bytes(archive.read_bytes())
    assert prepare(None, settings(env=str(copy)), nothing).prefix == found.prefix  # by its content


def test_changed_archive_is_another(tmp_path: Path, settings: Settings) -> None:
    archive = pack(tmp_path / "env.tar.gz")
    first = prepare(None, settings(env=str(archive)), nothing)
    before = archive.stat()
    pack(archive, note="changed")
    os.utime(archive, ns=(before.st_atime_ns, before.st_mtime_ns))  # it hides that it has changed
    second = prepare(None, settings(env=str(archive)), nothing)
    assert second.prefix != first.prefix
    assert second.prefix is not None and (second.prefix / "note").read_text() == "changed"


def test_archive_that_changes_meanwhile(tmp_path: Path, settings: Settings) -> None:
    archive = pack(tmp_path / "env.tar.gz")

    def meddle(what: str, done: int, total: int) -> None:
        if what == "unpacking":
            archive.touch()

    with pytest.raises(EnvironmentFailure, match="changed while it was read"):
        prepare(None, settings(env=str(archive)), meddle)


def test_zip_archive(tmp_path: Path, settings: Settings) -> None:
    with zipfile.ZipFile(tmp_path / "env.zip", "w") as archive:
        for name, text in FILES.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFREG | 0o755) << 16
            archive.writestr(info, text)
    assert unpacked_times(prepare(None, settings(env=str(tmp_path / "env.zip")), nothing)) == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bin__python": None}, "holds no bin/python"),
        (
            {"bin__conda_unpack": "raise SystemExit('the reason')"},
            "conda-unpack exited with code 1: the reason",
        ),
        ({"bin__python": "#!/bin/sh\necho no >&2; exit 9"}, "exited with code 9: no"),
        ({"../outside": "x"}, "leads out of the folder"),
    ],
)
def test_bad_archive_leaves_nothing(
    changes: dict[str, str | None], match: str, tmp_path: Path, settings: Settings
) -> None:
    archive = pack(tmp_path / "env.tar.gz", **changes)
    with pytest.raises(EnvironmentFailure, match=match):
        prepare(None, settings(env=str(archive)), nothing)
    assert environments(tmp_path) == []


def test_cut_off_archive(tmp_path: Path, settings: Settings) -> None:
    archive = pack(tmp_path / "env.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(EnvironmentFailure, match="cannot unpack .*env.tar.gz: damaged") as caught:
        prepare(None, settings(env=str(archive)), nothing)
    assert "conda-pack" in caught.value.remedy
    assert environments(tmp_path) == []


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    archive = pack(tmp_path / "env.tar.gz")
    with pytest.raises(ResourceError, match="cannot write to the cache folder") as caught:
        prepare(None, EnvironmentSettings(env=str(archive), cache_dir=str(tmp_path / "cache")), nothing)
    assert "--cache-dir" in caught.value.remedy


# ---------------------------------------------------------------------- many starts, sudden ends


def start(settings: EnvironmentSettings, meddle: Callable[[str, int, int], None]) -> None:
    try:
        found = prepare(None, settings, meddle)
        os._exit(0 if unpacked_times(found) == 1 else 2)
    except TwofoldError as error:
        print(error, file=sys.stderr)
        os._exit(1)


def test_many_starts_unpack_once(tmp_path: Path, settings: Settings) -> None:
    archive = pack(tmp_path / "env.tar.gz")
    tally = tmp_path / "tally"

    def slowly(what: str, done: int, total: int) -> None:
        with tally.open("a") as file:
            file.write(what + "\n")
        if what == "unpacking":
            time.sleep(0.3)

    asked = settings(env=str(archive))
    processes = [CONTEXT.Process(target=start, args=(asked, slowly)) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 5
    assert tally.read_text().count("unpacking\n") == 1
    assert tally.read_text().count("waiting for another start") >= 1
    assert len(environments(tmp_path)) == 2  # itself and its mark


@pytest.mark.parametrize("moment", ["unpacking", "adjusting paths"])
def test_killed_in_the_middle_and_started_again(moment: str, tmp_path: Path, settings: Settings) -> None:
    asked = settings(env=str(pack(tmp_path / "env.tar.gz")))
    reached = CONTEXT.Event()

    def hang(what: str, done: int, total: int) -> None:
        if what == moment:
            reached.set()
            time.sleep(60)

    process = CONTEXT.Process(target=start, args=(asked, hang))
    process.start()
    assert reached.wait(20) and process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    left = environments(tmp_path)
    assert left and not [name for name in left if name.endswith(".ready")]
    assert unpacked_times(prepare(None, asked, nothing)) == 1
    assert not [name for name in environments(tmp_path) if name.endswith(".part")]


# ---------------------------------------------------------------------- URLs


def test_file_url(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a folder").mkdir()
    archive = pack(tmp_path / "a folder" / "env.tar.gz")
    found = prepare(None, settings(env=archive.as_uri()), nothing)
    assert unpacked_times(found) == 1 and found.name == "env"


def test_oci_mapped_to_a_folder(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "store" / "packs" / "cpu").mkdir(parents=True)
    pack(tmp_path / "store" / "packs" / "cpu" / "my env.tar.gz")
    asked = settings(env="oci://packs@namespace/cpu/my env.tar.gz", oci_root=str(tmp_path / "store"))
    assert unpacked_times(prepare(None, asked, nothing)) == 1


@pytest.mark.parametrize("path", ["packs@n/../../secret", "..@n/x", "packs@n", "@n/x"])
def test_oci_path_stays_in_its_folder(path: str, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(EnvironmentFailure, match="no object's address"):
        prepare(None, settings(env=f"oci://{path}", oci_root=str(tmp_path)), nothing)


def test_oci_without_ocifs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_source, "_installed", lambda package: False)
    with pytest.raises(EnvironmentFailure, match="ocifs.*is not installed") as caught:
        prepare(None, settings(env="oci://packs@namespace/env.tar.gz"), nothing)
    assert "--oci-root" in caught.value.remedy and "--env" in caught.value.remedy


class Store(http.server.ThreadingHTTPServer):
    """A web server for one folder that counts what is downloaded from it."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.downloads = 0
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Store)
        self.server.downloads += 1
        super().do_GET()

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    (tmp_path / "store").mkdir()
    with Store(tmp_path / "store") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_downloaded_once(store: Store, tmp_path: Path, settings: Settings) -> None:
    pack(store.folder / "env.tar.gz")
    asked = settings(env=store.url + "/env.tar.gz")
    first = prepare(None, asked, nothing)
    assert unpacked_times(first) == 1 and store.downloads == 1
    assert prepare(None, asked, nothing).prefix == first.prefix
    assert store.downloads == 1
    assert not list((tmp_path / "cache" / "downloads").glob("*.part"))  # it is not kept beside the folder
    pack(store.folder / "env.tar.gz", note="changed")
    os.utime(store.folder / "env.tar.gz", (1_900_000_000, 1_900_000_000))
    assert prepare(None, asked, nothing).prefix != first.prefix
    assert store.downloads == 2


def test_archive_that_is_gone_from_its_store(store: Store, settings: Settings) -> None:
    """What was downloaded serves on, and says so; what was not cannot."""
    archive = pack(store.folder / "env.tar.gz")
    asked = settings(env=store.url + "/env.tar.gz")
    first = prepare(None, asked, nothing)
    archive.unlink()
    said: list[str] = []
    assert prepare(None, asked, lambda what, done, total: said.append(what)).prefix == first.prefix
    assert "using the one in the cache" in said[0]
    with pytest.raises(EnvironmentFailure, match="cannot download .*other.tar.gz"):
        prepare(None, settings(env=store.url + "/other.tar.gz"), nothing)


def test_many_starts_download_once(store: Store, settings: Settings) -> None:
    pack(store.folder / "env.tar.gz")
    asked = settings(env=store.url + "/env.tar.gz")
    processes = [CONTEXT.Process(target=start, args=(asked, nothing)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 3
    assert store.downloads == 1


def test_unknown_scheme(settings: Settings) -> None:
    with pytest.raises(EnvironmentFailure, match="cannot download nonsense://a/b"):
        prepare(None, settings(env="nonsense://a/b"), nothing)
