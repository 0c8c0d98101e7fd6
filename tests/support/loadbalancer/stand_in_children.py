"""`twofold balance` with stand-ins for the proxy and the controller: run as a program by the tests.

A stand-in proxy answers a line with a line: `who` with its number, its pid and its bandwidth; `sleep S`
the same after S seconds; `die` not at all.  A bandwidth of 13 Mbps makes a proxy that cannot start, and
one of 14 a proxy that never accepts.  What a proxy has read stands in the file `received`, and the pid of
a program that checks settings in `checking`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.child_context import ControllerContext, ProxyContext
from twofold.loadbalancer.config import CATALOGUE, Config, load
from twofold.loadbalancer.supervision import exec_handover, reload_check, startup_checks, supervisor
from twofold.loadbalancer.supervision.resources import ChildEntries
from twofold.logs import writer
from twofold.logs.console import say

BUCKET = struct.Struct("<QqQ")
LEVEL = -123456


async def serve(place: ProxyContext) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    log = writer.PipeWriter(place.access_log)
    bandwidth = f"{place.config.bandwidth.bandwidth_mbps:g}"
    talking: set[asyncio.Task[None]] = set()

    async def talk(client: socket.socket) -> None:
        asked = await loop.sock_recv(client, 100)
        word, _, argument = asked.decode().strip().partition(" ")
        with Path("received").open("a") as received:
            received.write(f"{word}\n")
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "sleep":
            await asyncio.sleep(float(argument))
        log.write(b'{"asked": "%s"}\n' % word.encode())
        await loop.sock_sendall(client, f"{place.number} {os.getpid()} {bandwidth}\n".encode())
        client.close()

    def accept(listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except BlockingIOError:  # another proxy was faster
            return
        client.setblocking(False)
        task = loop.create_task(talk(client))
        talking.add(task)
        task.add_done_callback(talking.discard)

    if bandwidth != "14":
        for listener in place.listeners:
            loop.add_reader(listener, accept, listener)
        os.write(place.ready, b"r")
    await stop.wait()
    for listener in place.listeners:
        loop.remove_reader(listener)
        listener.close()
    if talking:
        await asyncio.wait(talking, timeout=place.config.timeouts.drain_timeout)


def proxy(place: ProxyContext) -> int:
    if place.config.bandwidth.bandwidth_mbps == 13:
        return 1
    Path("/proc/self/comm").write_text("proxy")  # for who counts them
    shared_memory.attach(place.memory_fd)
    asyncio.run(serve(place))
    return 0


def controller(place: ControllerContext) -> int:
    shared = shared_memory.attach(place.memory_fd)
    table = shared_memory.endpoint_table(shared)
    table.publish({"instances": [{"cell": n} for n, _ in enumerate(place.config.pool.upstream)]})
    if table.sequence == 1:  # the first of them all
        rate = int(place.config.bandwidth.bandwidth_mbps * 1e6)
        BUCKET.pack_into(shared, shared_memory.BUCKET_OFFSET, rate, LEVEL, 1)
    elif BUCKET.unpack_from(shared, shared_memory.BUCKET_OFFSET)[1] == LEVEL:
        say("info", "the bucket's words are there")
    os.write(place.ready, b"r")
    while True:
        time.sleep(10)


LIVES = ChildEntries(proxy, controller, preload=(), modules=())


def balance(settings: Config, check: bool) -> int:
    startup_checks.verify(settings)
    if check:
        Path("checking").write_text(str(os.getpid()))
        time.sleep(float(os.environ.get("CHECK_TAKES", "0")))
        startup_checks.load(LIVES)
        print(CATALOGUE.to_json(settings))
        return 0
    return int(supervisor.start(settings, LIVES, say))


def asked(arguments: list[str]) -> tuple[Config, bool]:
    """Options as `--name value`; a command line of typer's would take most of the tests' time."""
    check = reload_check.CHECK in arguments
    words = [word for word in arguments if word != reload_check.CHECK]
    given: dict[str, list[str]] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        given.setdefault(name.removeprefix("--").replace("-", "_"), []).append(value)
    file = Path(given.pop("config")[0])
    options = {name: values if name == "listen" else values[0] for name, values in given.items()}
    return load(file, os.environ, options), check


def main() -> int:
    if exec_handover.pending(os.environ):
        return int(supervisor.resume(exec_handover.receive(os.environ), LIVES, say))
    try:
        return balance(*asked(sys.argv[1:]))
    except Exception as error:
        print(f"twofold: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    sys.exit(main())
