"""`python -m bench.balance.constant --port N --unix PATH`: the cheapest backend that Python can be.

It answers every request with the same small body, so that the proxy before it is what a round of
load waits for.  Equal heads are read once.  The head of its answer is that of an instance of ours, or
with --plain, that of just any HTTP server.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import uvloop

from bench.balance import wire

CONTENT = b'{"rows":0}'
PLAIN = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(CONTENT)
    + CONTENT
)
OURS = (  # the fields of an instance of ours
    b"HTTP/1.1 200 OK\r\nserver: twofold\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
    b"content-type: application/json\r\nx-content-type-options: nosniff\r\n"
    b"server-timing: queue;dur=0.174, predict;dur=0.006, encode;dur=0.027\r\n"
    b"opc-request-id: %b/%b/%b\r\n"
    % (b"A" * 32, b"B" * 32, b"C" * 32)
    + b"content-length: %d\r\n\r\n" % len(CONTENT)
    + CONTENT
)


class Constant(asyncio.Protocol):
    lengths: dict[bytes, int] = {}  # of whole requests, by their heads

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.partial = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        data = self.partial + data if self.partial else data
        end = data.find(wire.END) + 4
        whole = self.lengths.get(data[:end], 0)
        if end > 3 and not whole:
            whole = self.lengths[data[:end]] = end + wire.content_length(data[:end])
            if len(self.lengths) > 1000:
                self.lengths.clear()
        if end < 4 or len(data) < whole:
            self.partial = data
            return
        self.partial = b""
        self.transport.write(self.answer)
        if data.startswith(b"GET") and b"HTTP/1.0" in data[:64]:  # a health probe
            self.transport.close()


async def serve(port: int, path: str, answer: bytes) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Constant(answer), "127.0.0.1", port, backlog=4096)
    await loop.create_unix_server(lambda: Constant(answer), path, backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--unix", required=True)
    parser.add_argument("--plain", action="store_true", help="without the fields of an instance of ours")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.unix, PLAIN if options.plain else OURS))
