"""The chunked coding: the same pieces however the bytes were cut, and nothing ambiguous."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.wire.chunked import MAX_SIZE_LINE, MAX_TRAILERS, BadChunk, ChunkReader, chunk, last_chunk


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.lists(st.integers(0, 300), max_size=8))
def test_any_cut_gives_the_same_body(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(chunk, pieces)) + last_chunk([(b"StreamFailure", b"500; x")]) + b"rest"
    reader, out = ChunkReader(), b""
    marks = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(marks):
        if not reader.done:
            out += b"".join(reader.feed(data[start:end]))
        else:
            reader.rest += data[start:end]
    assert reader.done and out == b"".join(pieces) and reader.rest == b"rest"
    assert reader.trailers == [(b"StreamFailure", b"500; x")]


@pytest.mark.parametrize(
    "data",
    [
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n",
        b"1_0\r\n",
        b"\r\n",
        b"-1\r\n",
        b"5\nhello\r\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhello\n",
        b"12345678901234567\r\n",
        b"5;" + b"x" * MAX_SIZE_LINE + b"\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\nx: " + b"y" * MAX_TRAILERS,
        b"0\r\nx: a\x00\r\n\r\n",
        b"0\r\n" + b"x: y\r\n" * 40 + b"\r\n",
    ],
)
def test_ambiguous_chunks_are_refused(data: bytes) -> None:
    with pytest.raises(BadChunk):
        ChunkReader().feed(data)
    reader = ChunkReader()
    with pytest.raises(BadChunk):
        for byte in data:
            reader.feed(bytes((byte,)))


def test_trailers_that_would_frame_or_authorise_are_dropped() -> None:
    reader = ChunkReader()
    reader.feed(b"0\r\nContent-Length: 5\r\nHost: x\r\nX-Fine: 1\r\nAuthorization: x\r\n\r\n")
    assert reader.done and reader.trailers == [(b"X-Fine", b"1")]


def test_an_extension_is_ignored() -> None:
    assert ChunkReader().feed(b"5;a=b\r\nhello\r\n") == [b"hello"]
