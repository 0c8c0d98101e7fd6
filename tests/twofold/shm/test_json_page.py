"""A published page: whole, also under a racing reader, and the last one where the next has no room."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator

import pytest

from twofold.shm.json_page import JsonPage

SEQUENCE, OFFSET, HALF_SIZE = 12, 64, 4096


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, OFFSET + 2 * HALF_SIZE + 8) as mapped:
        mapped[:] = b"\xff" * len(mapped)
        mapped[SEQUENCE : SEQUENCE + 4] = bytes(4)
        yield mapped


@pytest.fixture
def page(memory: mmap.mmap) -> JsonPage:
    return JsonPage(memory, SEQUENCE, OFFSET, HALF_SIZE)


def test_what_is_published_is_read_by_others(page: JsonPage, memory: mmap.mmap) -> None:
    other = JsonPage(memory, SEQUENCE, OFFSET, HALF_SIZE)
    assert other.read() == {} and other.sequence == 0
    for number in range(1, 4):
        page.publish({"n": number, "text": "Gr\u00fc\u00dfe, \udcff"})
        assert other.read() == {"n": number, "text": "Gr\u00fc\u00dfe, \udcff"}
        assert other.sequence == number


def test_it_stays_within_its_halves(page: JsonPage, memory: mmap.mmap) -> None:
    around = memory[:SEQUENCE], memory[SEQUENCE + 4 : OFFSET], memory[OFFSET + 2 * HALF_SIZE :]
    for _ in range(2):
        page.publish_text(b'{"x":"' + b"y" * (page.limit - 8) + b'"}')
    assert len(page.read()["x"]) == page.limit - 8
    assert around == (memory[:SEQUENCE], memory[SEQUENCE + 4 : OFFSET], memory[OFFSET + 2 * HALF_SIZE :])


def test_what_has_no_room_leaves_the_last_one(page: JsonPage) -> None:
    page.publish({"n": 1})
    with pytest.raises(ValueError, match="does not fit"):
        page.publish({"x": "y" * HALF_SIZE})
    assert page.read() == {"n": 1} and page.sequence == 1


def test_the_sequence_never_returns_to_nothing(page: JsonPage, memory: mmap.mmap) -> None:
    struct.pack_into("<I", memory, SEQUENCE, 0xFFFFFFFE)
    for number in range(3):
        page.publish({"n": number})
        assert page.read() == {"n": number}
    assert page.sequence == 3


def test_a_racing_reader_never_sees_half_a_page(page: JsonPage) -> None:
    writer = os.fork()
    if writer == 0:
        number = 0
        while True:
            number += 1
            page.publish({"n": number, "text": chr(97 + number % 26) * (number * 37 % 3000)})
    try:
        seen: set[int] = set()
        end = time.monotonic() + 20
        while len(seen) <= 50:
            assert time.monotonic() < end, "the writer publishes, and it is read"
            content = page.read()
            if content:
                number = content["n"]
                assert content["text"] == chr(97 + number % 26) * (number * 37 % 3000)
                seen.add(number)
    finally:
        os.kill(writer, 9)
        os.waitpid(writer, 0)
