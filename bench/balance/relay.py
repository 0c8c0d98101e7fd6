"""How much later each chunk of a streamed answer arrives because a proxy is in between.

`python -m bench.balance.relay --port N` is the instance: it answers /predictWithResponseStream with
chunks at given times, each of which says when it was sent.  The reader, on the same machine and thus
with the same monotonic clock, subtracts.  Direct connections show what the reader itself adds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from time import monotonic_ns
from typing import Any

import uvloop

from bench.balance import proxies, wire
from bench.balance.proxies import launch, ready
from bench.balance.reactor import be_exact
from bench.balance.traffic import percentile
from bench.environments import Unavailable
from bench.servers import PROJECT

PATH = "/predictWithResponseStream"
CHUNK_BYTES = 256
PAUSE = 0.02  # seconds between two chunks of one stream
STREAMS = 8
CONTEST = (proxies.OURS, proxies.NGINX_BUFFERED, proxies.HAPROXY_PROMPT)
GRACE_SECONDS = 30

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
REPLICAS = [{"index": number, "state": "ready"} for number in range(STREAMS)]  # none waits for another
READY = json.dumps({"state": "ready", "replicas": REPLICAS}).encode()


@dataclass(frozen=True)
class Plan:
    chunks: int  # of each stream
    rounds: int


QUICK, FULL = Plan(50, 2), Plan(150, 2)


@dataclass(frozen=True)
class Spec:
    port: int
    chunks: int
    streams: int = STREAMS


# ---------------------------------------------------------------------- the instance


def chunk(now: int) -> bytes:
    """It begins with the time in 20 digits."""
    return b"%x\r\n%020d%b\r\n" % (CHUNK_BYTES, now, b"." * (CHUNK_BYTES - 20))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
        while True:
            head = await reader.readuntil(wire.END)
            content = await reader.readexactly(wire.content_length(head))
            if PATH.encode() in head.split(b"\r\n", 1)[0]:
                writer.write(HEAD)
                for _ in range(int(content)):
                    await asyncio.sleep(PAUSE)
                    writer.write(chunk(monotonic_ns()))
                writer.write(b"0\r\n\r\n")
            else:
                writer.write(wire.answer_head(len(READY), "relay") + READY)
            if b"HTTP/1.0" in head[:64]:  # a health probe
                return


async def serve(port: int) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


# ---------------------------------------------------------------------- the reader


async def stream(spec: Spec, number: int) -> list[int]:
    """Delays of the chunks in microseconds; raises ValueError unless it gets all of them."""
    await asyncio.sleep(number * PAUSE / spec.streams)  # chunks of all streams are spread evenly
    reader, writer = await asyncio.open_connection("127.0.0.1", spec.port)
    with contextlib.closing(writer):
        content = b"%d" % spec.chunks
        writer.write(wire.request_head(len(content), path=PATH) + b"\r\n" + content)
        head = await reader.readuntil(wire.END)
        if wire.status(head) != 200:
            raise ValueError(f"a stream was answered with {wire.status(head)}")
        delays, content = [], b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            content += (await reader.readexactly(size + 2))[:-2]
            while len(content) >= CHUNK_BYTES:  # a proxy may frame them anew, two as one
                delays.append((monotonic_ns() - int(content[:20])) // 1000)
                content = content[CHUNK_BYTES:]
    if len(delays) != spec.chunks:
        raise ValueError(f"{len(delays)} chunks of {spec.chunks}: some were lost")
    return delays


async def read(spec: Spec) -> list[int]:
    found = await asyncio.gather(*(stream(spec, number) for number in range(spec.streams)))
    return [delay for delays in found for delay in delays]


def observe(spec: Spec) -> list[int]:
    """In a process of its own; raises RuntimeError with what it said when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.balance.relay", "--read", json.dumps(asdict(spec))],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=spec.chunks * PAUSE + GRACE_SECONDS,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the reader of streams failed: {done.stderr.strip()[-400:]}")
    return [int(one) for one in json.loads(done.stdout)]


# ---------------------------------------------------------------------- the part


class Relay:
    """The whole part; `skipped` maps a name to its reason."""

    def __init__(self, plan: Plan, skipped: dict[str, str]) -> None:
        self.plan = plan
        self.skipped = skipped

    def measure(self) -> dict[str, Any]:
        with contextlib.ExitStack() as stack:
            origin = ready(launch(stack, proxies.module("relay", "relay")))
            ports, titles = {"direct": origin.port}, {"direct": "direct connection"}
            for proxy in CONTEST:
                try:
                    ports[proxy.name] = ready(launch(stack, proxy.before(f"127.0.0.1:{origin.port}"))).port
                    titles[proxy.name] = proxy.title
                except Unavailable as error:
                    self.skipped[proxy.name] = str(error)
            delays: dict[str, list[int]] = {name: [] for name in ports}
            for _ in range(self.plan.rounds):  # in turns: what disturbs the machine disturbs all of them
                for name, port in ports.items():
                    delays[name] += observe(Spec(port, self.plan.chunks))
        found = {name: {"title": titles[name], **summary(seen)} for name, seen in delays.items()}
        for name, one in found.items():
            print(f"  {name:16} p50 {one['p50_us'] / 1000:.2f} ms  p99 {one['p99_us'] / 1000:.2f} ms  "
                  f"max {one['max_us'] / 1000:.2f} ms", flush=True)  # fmt: skip
        return {"streams": STREAMS, "pause_ms": PAUSE * 1000, "bytes": CHUNK_BYTES, "proxies": found}


def summary(delays: list[int]) -> dict[str, Any]:
    return {
        "chunks": len(delays),
        "p50_us": percentile(delays, 0.5),
        "p99_us": percentile(delays, 0.99),
        "max_us": max(delays, default=0),
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--read", default="", help="a Spec in JSON: read streams instead of giving them")
    options = parser.parse_args()
    be_exact()
    if options.read:
        print(json.dumps(uvloop.run(read(Spec(**json.loads(options.read))))))
    else:
        uvloop.run(serve(options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
