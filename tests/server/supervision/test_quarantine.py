"""Bodies that killed twice: how long they are refused, what is kept of them, and what is not."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from twofold.server.replica import slots
from twofold.server.supervision.quarantine import Quarantine

SECOND = 1_000_000_000


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, slots.SLOTS_OFFSET) as mapped:
        yield mapped


def held(memory: mmap.mmap) -> int:
    return int(slots.CONTROL.unpack_from(memory, slots.QUARANTINED)[0])


def cells(memory: mmap.mmap) -> dict[bytes, int]:
    size = slots.QUARANTINE_CELL.size
    offsets = range(slots.QUARANTINE_OFFSET, slots.QUARANTINE_OFFSET + slots.QUARANTINE_CELLS * size, size)
    return {digest: expiry for digest, expiry, _ in (
        slots.QUARANTINE_CELL.unpack_from(memory, offset) for offset in offsets
    ) if expiry}  # fmt: skip


def digest_of(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=slots.DIGEST_SIZE).digest()


def test_the_cells_end_where_the_mailboxes_begin() -> None:
    end = slots.QUARANTINE_OFFSET + slots.QUARANTINE_CELLS * slots.QUARANTINE_CELL.size
    assert end <= slots.MAILBOX_OFFSET


def test_a_body_is_refused_for_its_time(memory: mmap.mmap, tmp_path: Path) -> None:
    quarantine = Quarantine(memory, tmp_path, 60.0, 1000)
    quarantine.add(b"poison", 5 * SECOND)
    assert cells(memory) == {digest_of(b"poison"): 65 * SECOND} and held(memory) == 1
    quarantine.expire(65 * SECOND - 1)
    assert held(memory) == 1
    quarantine.expire(65 * SECOND)
    assert held(memory) == 0, "fronts skip the hash again"


def test_the_oldest_cell_makes_room(memory: mmap.mmap, tmp_path: Path) -> None:
    quarantine = Quarantine(memory, tmp_path, 60.0, 0)
    bodies = [b"body %d" % number for number in range(slots.QUARANTINE_CELLS + 3)]
    for body in bodies:
        quarantine.add(body, SECOND)
    assert held(memory) == slots.QUARANTINE_CELLS
    assert set(cells(memory)) == {digest_of(body) for body in bodies[3:]}
    assert memory[slots.MAILBOX_OFFSET : slots.MAILBOX_OFFSET + slots.PAGE] == bytes(slots.PAGE)


def test_the_body_is_kept_for_its_owner_alone(memory: mmap.mmap, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "quarantine"
    said = Quarantine(memory, folder, 60.0, 1000).add(b"poison", SECOND)
    (kept,) = folder.iterdir()
    assert kept.read_bytes() == b"poison" and str(kept) in said and digest_of(b"poison").hex() in kept.name
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_oldest_bodies_make_room_and_other_files_stay(memory: mmap.mmap, tmp_path: Path) -> None:
    quarantine = Quarantine(memory, tmp_path, 60.0, 100)
    (tmp_path / "notes.txt").write_bytes(b"n" * 500)
    for number in range(4):
        quarantine.add(b"%d" % number * 40, SECOND)
        for age, kept in enumerate(sorted(tmp_path.glob("*.body"), key=lambda path: path.stat().st_mtime)):
            os.utime(kept, (1000 + age, 1000 + age))  # the clock of files is coarser than this test
    left = {path.read_bytes()[:1] for path in tmp_path.glob("*.body")}
    assert left == {b"2", b"3"} and (tmp_path / "notes.txt").exists()


def test_a_body_beyond_the_limit_is_refused_but_not_kept(memory: mmap.mmap, tmp_path: Path) -> None:
    said = Quarantine(memory, tmp_path, 60.0, 10).add(b"x" * 11, SECOND)
    assert "quarantine_mb" in said and not list(tmp_path.iterdir()) and held(memory) == 1


def test_a_folder_that_cannot_be_written_is_told_and_the_body_refused(
    memory: mmap.mmap, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    said = Quarantine(memory, tmp_path / "file", 60.0, 1000).add(b"poison", SECOND)
    assert "could not be kept" in said and str(tmp_path / "file") in said and held(memory) == 1
