"""Folders and zips that are artifacts, and those that are not."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from twofold.errors import ArtifactError, ResourceError
from twofold.server.artifact.artifact import Runtime, opened

SCORE = "def load_model(): ...\ndef predict(data, model=load_model()): ...\n"
RUNTIME = """
MODEL_ARTIFACT_VERSION: '3.0'
MODEL_DEPLOYMENT:
  INFERENCE_CONDA_ENV:
    INFERENCE_ENV_SLUG: generalml_p310
    INFERENCE_ENV_TYPE: data_science
    INFERENCE_ENV_PATH: oci://bucket@namespace/path with space/env
    INFERENCE_PYTHON_VERSION: 3.10
MODEL_PROVENANCE:
  TENANCY_OCID:
"""


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def make_zip(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "."), text)
    return path


def left(cache: Path) -> list[str]:
    found = [path.name for path in cache.rglob("*")] if cache.exists() else []
    return sorted(name for name in found if not name.endswith(".lock") and name != "artifacts")


# ---------------------------------------------------------------------- folders


def test_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "iris", score__py=SCORE)
    found = opened(str(folder), tmp_path / "cache")
    assert (found.path, found.name, found.runtime, found.sample) == (folder, "iris", None, None)
    assert not (tmp_path / "cache").exists()


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "iris", score__py=SCORE, sample__json="[]")
    monkeypatch.chdir(tmp_path)
    found = opened("iris", tmp_path / "cache")
    assert found.path == tmp_path / "iris" and found.sample == tmp_path / "iris" / "sample.json"
    monkeypatch.chdir(tmp_path / "iris")
    assert opened(".", tmp_path / "cache").name == "iris"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no /no/such/artifact"):
        opened("/no/such/artifact", tmp_path)


def test_folder_without_score(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no score\.py"):
        opened(str(write(tmp_path / "empty")), tmp_path / "cache")
    write(tmp_path / "outer" / "inner", score__py=SCORE)
    with pytest.raises(ArtifactError, match=r"did you mean .*/outer/inner\?"):
        opened(str(tmp_path / "outer"), tmp_path / "cache")
    (tmp_path / "folder" / "score.py").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"has no score\.py"):
        opened(str(tmp_path / "folder"), tmp_path / "cache")


def test_file_instead_of_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "iris", score__py=SCORE, runtime__yaml=RUNTIME)
    for name in ("score.py", "runtime.yaml"):
        with pytest.raises(ArtifactError, match="neither a folder nor") as caught:
            opened(str(folder / name), tmp_path / "cache")
        assert caught.value.remedy == f"name the folder: {folder}"


# ---------------------------------------------------------------------- zips


@pytest.mark.parametrize("wrapping", ["", "model/", "./"])
def test_zip(wrapping: str, tmp_path: Path) -> None:
    files = {
        f"{wrapping}score.py": SCORE,
        f"{wrapping}runtime.yaml": RUNTIME,
        f"{wrapping}data/model.bin": "x",
    }
    noise = {"__MACOSX/._score.py": "x"} if wrapping == "model/" else {}
    archive = tmp_path / "iris-2.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for name, text in {**files, **noise}.items():
            target.writestr(name, text)
    found = opened(str(archive), tmp_path / "cache")
    assert found.name == "iris-2"
    assert (found.path / "score.py").read_text() == SCORE
    assert (found.path / "data" / "model.bin").read_text() == "x"
    assert found.runtime is not None
    assert opened(str(archive), tmp_path / "cache").path == found.path
    make_zip(archive, score__py=SCORE + "# changed")
    assert opened(str(archive), tmp_path / "cache").path != found.path


@pytest.mark.parametrize(
    "files",
    [{"other__py": SCORE}, {"a/b/score__py": SCORE}, {"a/score__py": SCORE, "b/score__py": SCORE}, {}],
)
def test_zip_without_score(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no score\.py"):
        opened(str(make_zip(tmp_path / "a.zip", **files)), tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_hostile_zip(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", score__py=SCORE, **{"../outside": "x"})
    with pytest.raises(ArtifactError, match="leads out of the folder"):
        opened(str(archive), tmp_path / "cache")
    assert left(tmp_path / "cache") == []
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("cut", [0, 10, 100, -1, -30])
def test_broken_zip(cut: int, tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", score__py=SCORE, model__bin="0123456789" * 100)
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match="nor a whole zip"):
        opened(str(archive), tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_zip_with_a_damaged_file(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", score__py=SCORE * 50)
    damaged = bytearray(archive.read_bytes())
    damaged[60] ^= 0xFF
    archive.write_bytes(damaged)
    with pytest.raises(ArtifactError, match="cannot unpack it"):
        opened(str(archive), tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_file_that_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(SCORE)
    with pytest.raises(ArtifactError, match="neither a folder nor a whole zip"):
        opened(str(tmp_path / "score.py"), tmp_path / "cache")


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match="cannot write to the cache folder"):
        opened(str(make_zip(tmp_path / "a.zip", score__py=SCORE)), tmp_path / "cache")


# ---------------------------------------------------------------------- runtime.yaml


def runtime(tmp_path: Path, text: str) -> Runtime | None:
    folder = write(tmp_path / "artifact", score__py=SCORE, runtime__yaml=text)
    return opened(str(folder), tmp_path / "cache").runtime


def test_runtime(tmp_path: Path) -> None:
    assert runtime(tmp_path, RUNTIME) == Runtime(
        "oci://bucket@namespace/path with space/env", "3.10", "generalml_p310", "data_science", "3.0"
    )


@pytest.mark.parametrize(
    ("written", "version"),
    [("3.10", "3.10"), ("'3.10'", "3.10"), ("3.1", "3.10"), ("3.12.4", "3.12.4"), ("3.7", "3.7"), ("", ""),
     ("null", ""), ("~", ""), ("''", "")],
)  # fmt: skip
def test_version_as_text_or_number(written: str, version: str, tmp_path: Path) -> None:
    found = runtime(tmp_path, RUNTIME.replace("3.10", written))
    assert found is not None and found.python_version == version


@pytest.mark.parametrize("written", ["latest", "310", "2.7", "3", "[3, 10]", "3.10-beta", "'3.10; x'"])
def test_version_that_is_no_version(written: str, tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"INFERENCE_PYTHON_VERSION.*runtime\.yaml|runtime\.yaml.*VERSION"
    ):
        runtime(tmp_path, RUNTIME.replace("3.10", written))


def test_path_is_relative_to_the_artifact(tmp_path: Path) -> None:
    found = runtime(tmp_path, RUNTIME.replace("oci://bucket@namespace/path with space/env", "env.tar.gz"))
    assert found is not None and found.env_path == str(tmp_path / "artifact" / "env.tar.gz")
    found = runtime(
        tmp_path, RUNTIME.replace("oci://bucket@namespace/path with space/env", "/packs/env.tar.gz")
    )
    assert found is not None and found.env_path == "/packs/env.tar.gz"


@pytest.mark.parametrize(
    "text",
    [
        "MODEL_ARTIFACT_VERSION: '3.0'",
        "MODEL_DEPLOYMENT:",
        "MODEL_DEPLOYMENT:\n  INFERENCE_CONDA_ENV:",
        "{}",
        "",
        "# later",
    ],
)
def test_nothing_about_deployment(text: str, tmp_path: Path) -> None:
    assert runtime(tmp_path, text) is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [1, 2\nb: 3", r"runtime\.yaml:2: is not YAML"),
        ("- a\n- b", "not a mapping"),
        ("just words", "not a mapping"),
        ("MODEL_DEPLOYMENT: [1]", "MODEL_DEPLOYMENT is not where"),
        ("MODEL_DEPLOYMENT: words", "INFERENCE_CONDA_ENV is not where"),
        ("MODEL_DEPLOYMENT:\n  INFERENCE_CONDA_ENV: words", "INFERENCE_CONDA_ENV is not a mapping"),
        (
            "MODEL_DEPLOYMENT:\n  INFERENCE_CONDA_ENV:\n    INFERENCE_ENV_PATH: {a: b}",
            "PATH is not a plain value",
        ),
        ("!!python/object/apply:os.system [false]", "not a mapping"),
        ("[" * 2000, "is not YAML"),
        ("a: \x07", "is not YAML"),
        ("#" * 1_100_000, "larger than 1 MB"),
    ],
)
def test_bad_runtime(text: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=match) as caught:
        runtime(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("INFERENCE_PYTHON_VERSION: '3.10'",
         "INFERENCE_PYTHON_VERSION is in the wrong place.*below MODEL_DEPLOYMENT > INFERENCE_CONDA_ENV"),
        ("MODEL_DEPLOYMENT: {INFERENCE_ENV_PATH: x}", "INFERENCE_ENV_PATH is in the wrong place"),
        ("INFERENCE_CONDA_ENV: {}", "INFERENCE_CONDA_ENV is in the wrong place.*below MODEL_DEPLOYMENT"),
        ("A: {MODEL_ARTIFACT_VERSION: '3.0'}", "MODEL_ARTIFACT_VERSION is in the wrong.*at the top"),
        ("MODEL_DEPLOYMENT: {INFERENCE_CONDA_ENV: {INFERENCE_PYTHON: '3.10'}}",
         "INFERENCE_PYTHON means nothing here.*did you mean INFERENCE_PYTHON_VERSION"),
        ("a: &a\n  INFERENCE_ENV_PATH: x\nb: *a", "INFERENCE_ENV_PATH is in the wrong place"),
    ],
)  # fmt: skip
def test_key_in_the_wrong_place(text: str, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "artifact", score__py=SCORE, runtime__yaml=text)
    [remark] = opened(str(folder), tmp_path / "cache").remarks
    assert remark.level == "warning" and re.match(words, f"{remark.message}: {remark.remedy}")


def test_a_good_runtime_has_no_diagnostics(tmp_path: Path) -> None:
    folder = write(tmp_path / "artifact", score__py=SCORE, runtime__yaml=RUNTIME)
    assert opened(str(folder), tmp_path / "cache").remarks == ()


def test_runtime_that_is_not_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "artifact", score__py=SCORE)
    (folder / "runtime.yaml").write_bytes(b"\xff\xfe\xfa\x00\x01")
    with pytest.raises(ArtifactError, match="is not YAML"):
        opened(str(folder), tmp_path / "cache")
