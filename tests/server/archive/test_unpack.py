"""Archives as they should be, damaged ones, and ones that mean harm."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twofold.errors import ResourceError
from twofold.server.archive.extraction_root import DISK_RESERVE, BadArchive
from twofold.server.archive.unpack import unpack

OUTSIDE = "left by an archive"


def nothing(done: int, total: int) -> None:
    """For a caller who does not care about progress."""


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mtime = kind, target, size, 1_600_000_000
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info


def tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, content in entries:
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.SYMTYPE, target), b""


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.LNKTYPE, target), b""


def file(name: str, content: bytes = b"content") -> tuple[tarfile.TarInfo, bytes]:
    return entry(name), content


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.DIRTYPE), b""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty folder; what lies around it must stay as it is."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def refuse(archive: Path, target: Path, match: str) -> None:
    around = sorted(path.name for path in target.parent.iterdir())
    with pytest.raises(BadArchive, match=match):
        unpack(archive, target, nothing)
    assert sorted(path.name for path in target.parent.iterdir()) == around
    assert (target.parent / "secret").read_text() == "secret"


# ---------------------------------------------------------------------- as it should be


@pytest.mark.parametrize(
    ("mode", "dialect"),
    [
        ("w:", tarfile.USTAR_FORMAT),
        ("w:gz", tarfile.PAX_FORMAT),
        ("w:bz2", tarfile.GNU_FORMAT),
        ("w:xz", tarfile.PAX_FORMAT),
    ],
)
def test_unpacks_what_tar_makes(tmp_path: Path, target: Path, mode: str, dialect: int) -> None:
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "empty").mkdir()
    program = source / "bin" / "python3.10"
    program.write_bytes(random.Random(1).randbytes(2_200_000))  # several chunks, and not a multiple of them
    program.chmod(0o4755)
    os.utime(program, (1_500_000_000, 1_500_000_000))
    (source / "bin" / "python").symlink_to("python3.10")
    os.link(program, source / "bin" / "same")
    (source / ("long " + "n" * 90)).write_bytes(b"x" * 1024)
    with tarfile.open(tmp_path / "archive", mode, format=dialect) as archive:  # type: ignore[call-overload]
        archive.add(source, ".")
    seen: list[tuple[int, int]] = []
    unpack(tmp_path / "archive", target, lambda done, total: seen.append((done, total)))
    unpacked = target / "bin" / "python3.10"
    assert unpacked.read_bytes() == program.read_bytes()
    assert unpacked.stat().st_mtime == 1_500_000_000
    assert stat.S_IMODE(unpacked.stat().st_mode) == 0o755  # without setuid
    assert os.readlink(target / "bin" / "python") == "python3.10"
    assert (target / "bin" / "same").stat().st_ino == unpacked.stat().st_ino
    assert (target / ("long " + "n" * 90)).stat().st_size == 1024
    assert (target / "empty").is_dir()
    assert len(seen) > 2 and seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


def test_unpacks_zip_with_modes_and_links(tmp_path: Path, target: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive", "w", zipfile.ZIP_DEFLATED) as archive:
        program = zipfile.ZipInfo("bin/run")
        program.external_attr = (stat.S_IFREG | 0o755) << 16
        archive.writestr(program, b"#!/bin/sh\n")
        alias = zipfile.ZipInfo("bin/alias")
        alias.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(alias, "run")
        archive.writestr("folder/", b"")
        archive.writestr("plain.txt", b"x" * 100_000)
    unpack(tmp_path / "archive", target, nothing)
    assert stat.S_IMODE((target / "bin/run").stat().st_mode) == 0o755
    assert os.readlink(target / "bin/alias") == "run"
    assert (target / "plain.txt").stat().st_size == 100_000
    assert (target / "folder").is_dir()


def test_later_entry_replaces_earlier(tmp_path: Path, target: Path) -> None:
    archive = tar(tmp_path / "a.tgz", file("one", b"old"), hard_link("two", "one"), file("one", b"new"))
    unpack(archive, target, nothing)
    assert (target / "one").read_bytes() == b"new"
    assert (target / "two").read_bytes() == b"old"


def test_links_among_themselves(tmp_path: Path, target: Path) -> None:
    archive = tar(
        tmp_path / "a.tgz",
        file("lib/libx.so.1.0"),
        link("lib/libx.so.1", "libx.so.1.0"),
        link("lib/libx.so", "libx.so.1"),
        link("lib64", "lib"),
        link("share/doc/up", "../../lib64/libx.so"),
        link("dangling", "lib/not-there"),
    )
    unpack(archive, target, nothing)
    assert (target / "share/doc/up").read_bytes() == b"content"
    assert (target / "dangling").is_symlink()


# ---------------------------------------------------------------------- means harm

HOSTILE: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "path up": ([file("../" + OUTSIDE)], "leads out"),
    "path up, later": ([file("a/b/../../../" + OUTSIDE)], "leads out"),
    "absolute path": ([file("/tmp/" + OUTSIDE)], "absolute"),
    "folder up": ([folder("..")], "leads out"),
    "absolute link": ([link("etc", "/etc")], "leads out"),
    "link up": ([link("a", "..")], "leads out"),
    "link up from below": ([link("a/b", "../..")], "leads out"),
    "file through a link": ([link("a", "b"), file("a/" + OUTSIDE)], "link and something else"),
    "file through a link out": ([link("a", ".."), file("a/" + OUTSIDE)], "leads out"),
    "link through a link": ([folder("d"), link("a", "d"), link("a/b", "x")], "behind a symbolic link"),
    # Each is harmless by its text; together they lead out: c is the top, so c/.. is not.
    "links that add up": ([link("a/b/c", "../.."), link("d", "a/b/c/..")], "leads out"),
    "a chain that adds up": ([link("a/b", "."), link("c", "a/b/b/b/../../..")], "leads out"),
    "link in a circle": ([link("a", "b"), link("b", "a")], "circles"),
    "link to itself": ([link("a", "a/a")], "circles"),
    "link over a file": ([file("a"), link("a", "b")], "link and something else"),
    "empty link": ([link("a", "")], "leads out"),
    "hard link up": ([hard_link("a", "../secret")], "leads out"),
    "absolute hard link": ([hard_link("a", "/etc/passwd")], "absolute"),
    "hard link through a link": ([link("a", ".."), hard_link("b", "a/secret")], "no file before it"),
    "hard link to a link": ([link("a", "b"), hard_link("c", "a")], "no file before it"),
    "hard link to a folder": ([folder("a"), hard_link("c", "a")], "no file before it"),
    "hard link to nothing": ([hard_link("a", "b")], "no file before it"),
    "character device": ([(entry("null", tarfile.CHRTYPE), b"")], "device"),
    "block device": ([(entry("disk", tarfile.BLKTYPE), b"")], "device"),
    "fifo": ([(entry("pipe", tarfile.FIFOTYPE), b"")], "device"),
    "a file as a folder": ([file("a"), file("a/b")], "exists|Not a directory"),
    "a folder as a file": ([folder("a"), file("a")], "exists|directory"),
    "long name": ([file("n" * 300)], "too long"),
    "no name": ([file("./")], "without a name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses(name: str, tmp_path: Path, target: Path) -> None:
    entries, match = HOSTILE[name]
    refuse(tar(tmp_path / "a.tgz", *entries), target, match)
    assert not Path("/tmp", OUTSIDE).exists()


@pytest.mark.parametrize("name", ["../" + OUTSIDE, "/tmp/" + OUTSIDE, "a/../../" + OUTSIDE])
def test_refuses_zip_slip(name: str, tmp_path: Path, target: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, "x")
    refuse(tmp_path / "a.zip", target, "leads out|absolute")


@pytest.mark.parametrize(
    ("kind", "content", "match"),
    [(stat.S_IFLNK, "../secret", "leads out"), (stat.S_IFCHR, "", "device"), (stat.S_IFIFO, "", "device")],
)
def test_refuses_in_zip(kind: int, content: str, match: str, tmp_path: Path, target: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("entry")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, content)
    refuse(tmp_path / "a.zip", target, match)


# ---------------------------------------------------------------------- too large


@pytest.fixture
def little_disk(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that may be used: the disk looks nearly full."""
    free = 5_000_000
    usage = type(shutil.disk_usage("/"))(10**9, 10**9 - free - DISK_RESERVE, free + DISK_RESERVE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return free


def written(target: Path) -> int:
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def test_bomb_of_one_file(tmp_path: Path, target: Path, little_disk: int) -> None:
    archive = tar(tmp_path / "a.tgz", file("zeros", bytes(50_000_000)))
    assert archive.stat().st_size < little_disk / 10
    with pytest.raises(ResourceError, match="not enough disk"):
        unpack(archive, target, nothing)
    assert written(target) == 0  # refused by what it says, before anything is written


def test_bomb_of_many_files(tmp_path: Path, target: Path, little_disk: int) -> None:
    archive = tar(tmp_path / "a.tgz", *[file(f"{number}", b"") for number in range(3000)])
    with pytest.raises(ResourceError, match="not enough disk"):
        unpack(archive, target, nothing)


def test_zip_bomb(tmp_path: Path, target: Path, little_disk: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(10):
            archive.writestr(f"{number}", bytes(1_000_000))
    with pytest.raises(ResourceError, match="not enough disk"):
        unpack(tmp_path / "a.zip", target, nothing)
    assert not list(target.iterdir())  # a zip says all of it in advance


def test_zip_that_lies_about_a_size(tmp_path: Path, target: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", bytes(1_000_000))
        archive.filelist[0].file_size = 10
    with pytest.raises(BadArchive):
        unpack(tmp_path / "a.zip", target, nothing)
    assert written(target) <= 10


def test_header_that_would_fill_memory(tmp_path: Path, target: Path) -> None:
    header = entry("pax", tarfile.XHDTYPE, size=1 << 33).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(4096))
    refuse(tmp_path / "a.tar", target, "header of 8589934592 bytes")
    header = entry("pax", tarfile.GNUTYPE_LONGNAME, size=2 << 20).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "b.tar").write_bytes(header + bytes(4 << 20))  # as much as it says is really there
    refuse(tmp_path / "b.tar", target, "header of 2097152 bytes")


def test_header_with_a_negative_size(tmp_path: Path, target: Path) -> None:
    header = bytearray(entry("x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 8 + (-1024).to_bytes(4, "big", signed=True)
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(4096))
    refuse(tmp_path / "a.tar", target, "header of -1024 bytes|invalid offset")


def test_chain_of_headers(tmp_path: Path, target: Path) -> None:
    block = entry("pax", tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(block * 20_000 + bytes(1024))
    refuse(tmp_path / "a.tar", target, "recursion|damaged|cut off")


# ---------------------------------------------------------------------- damaged

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "none": bytes,
}


def plain_tar(tmp_path: Path) -> bytes:
    """Two members of 41 blocks, then the end."""
    one, other = random.Random(7).randbytes(20_000), random.Random(8).randbytes(20_480)
    return tar(tmp_path / "whole.tar", file("a", one), file("b", other), mode="w:").read_bytes()


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_cut_off_anywhere(compression: str, tmp_path: Path, target: Path) -> None:
    members = plain_tar(tmp_path)[: 2 * (512 + 20_480)]
    whole = COMPRESSORS[compression](members + bytes(1024))
    # At the boundary between two members, too, where a tar without compression looks complete.
    most = len(members) if compression == "none" else len(whole) - 1
    lengths = [0, 1, 100, 512, 512 + 20_480, most, *random.Random(3).sample(range(most), 10)]
    for length in lengths:
        (tmp_path / "cut").write_bytes(whole[:length])
        shutil.rmtree(target)
        target.mkdir()
        refuse(tmp_path / "cut", target, ".")


@pytest.mark.parametrize("compression", ["gzip", "bz2", "xz"])
def test_flipped_bit_is_found(compression: str, tmp_path: Path, target: Path) -> None:
    whole = bytearray(COMPRESSORS[compression](plain_tar(tmp_path)))
    for position in range(20, len(whole), len(whole) // 12):
        damaged = bytearray(whole)
        damaged[position] ^= 4
        (tmp_path / "damaged").write_bytes(damaged)
        shutil.rmtree(target)
        target.mkdir()
        refuse(tmp_path / "damaged", target, ".")


def test_header_damaged_in_the_middle(tmp_path: Path, target: Path) -> None:
    whole = bytearray(plain_tar(tmp_path))
    whole[512 + 20_480 + 10] ^= 1  # in the name of the second member: its checksum is wrong
    (tmp_path / "damaged.tar").write_bytes(whole)
    refuse(tmp_path / "damaged.tar", target, "end mark")


def test_zip_checksum(tmp_path: Path, target: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", b"0123456789")
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole.replace(b"0123456789", b"0123456788"))
    refuse(tmp_path / "a.zip", target, "CRC")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "neither"),
        (b"hello", "neither"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd"),
        (bytes(2048), "neither"),
    ],
)
def test_file_that_is_no_archive(content: bytes, match: str, tmp_path: Path, target: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    refuse(tmp_path / "a", target, match)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 12))
def test_any_damage_ends_in_one_of_two_ways(tmp_path: Path, seed: int, flips: int) -> None:
    """Unpacked, or one of our errors; and never outside."""
    chance = random.Random(seed)
    source = tmp_path / "base.tar"
    if not source.exists():
        tar(
            source,
            file("a/b"),
            link("c", "a/b"),
            hard_link("d", "a/b"),
            folder("e"),
            file("f" * 120),
            mode="w:",
        )
    damaged = bytearray(source.read_bytes())
    for _ in range(flips):
        damaged[chance.randrange(min(len(damaged), 6000))] = chance.randrange(256)
    around = tmp_path / "around"
    shutil.rmtree(around, ignore_errors=True)
    (around / "into").mkdir(parents=True)
    (tmp_path / "damaged").write_bytes(damaged)
    try:
        unpack(tmp_path / "damaged", around / "into", nothing)
    except (BadArchive, ResourceError):
        pass
    assert [path.name for path in around.iterdir()] == ["into"]
