"""A TCP proxy that spoils connections: the network that fails between the load balancer and an instance.

On the test's own event loop, loopback only. Toxics as toxiproxy knows them, for each direction, plus
two that concern connecting: `down` (refused) and `partition` (nobody answers at all).  They may be
changed at any time, and hold for connections that are open, too.
"""

from __future__ import annotations

import asyncio
import random
import socket
from dataclasses import dataclass, field

from tests.support.loadbalancer.scripted_instance import reset

PIECE = 65536
BLINK = 0.005  # seconds between looks at a toxic that holds everything back


@dataclass
class Toxics:
    """What happens to bytes of one direction. Times in seconds; nothing is set at first."""

    latency: float = 0.0
    jitter: float = 0.0
    black_hole: bool = False  # nothing passes, and nothing ends
    timeout: float = 0.0  # a black hole closes its connections after so long; 0 never
    bandwidth: float = 0.0  # bytes per second; 0 is unlimited
    slice: int = 0  # bytes of which each piece is made; 0 leaves them as they come
    slice_delay: float = 0.0
    limit: int = -1  # bytes, after which the connection is closed; -1 never
    slow_close: float = 0.0
    reset_after: float = -1.0  # from the first byte; -1 never


@dataclass
class ChaosProxy:
    """Listens on `port` for what is meant for `target`. `up`: to the instance; `down`: from it."""

    target: int
    port: int = 0
    up: Toxics = field(default_factory=Toxics)
    down: Toxics = field(default_factory=Toxics)
    seed: int = 1
    accepted: int = 0

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._pairs: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._fillers: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> ChaosProxy:
        self._listener = listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(256)
        self.port = listener.getsockname()[1]
        self._accept()
        return self

    def refuse(self) -> None:
        """Toxic `down`: connections are refused and those that are open are reset. `start` ends it."""
        self._stop_accepting()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        """Toxic `reset_peer`, at once, for all that are open."""
        for writer in list(self._open):
            reset(writer.transport)

    def partition(self) -> None:
        """The cable is out: nothing passes, and a SYN is never answered."""
        assert self._listener is not None
        self._stop_accepting()
        self.up.black_hole = self.down.black_hole = True
        self._listener.listen(0)
        for _ in range(8):  # with its queue full the kernel drops what else knocks
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self._fillers.append(filler)

    def heal(self) -> None:
        assert self._listener is not None
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        self.up.black_hole = self.down.black_hole = False
        self._listener.listen(256)
        self._accept()

    async def stop(self) -> None:
        self.refuse()
        for filler in self._fillers:
            filler.close()
        for task in list(self._pairs):
            task.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    # ------------------------------------------------------------------ connections

    def _accept(self) -> None:
        self._accepting = asyncio.get_running_loop().create_task(self._accept_forever())

    def _stop_accepting(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None

    async def _accept_forever(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            self.accepted += 1
            task = loop.create_task(self._join(client))
            self._pairs.add(task)
            task.add_done_callback(self._pairs.discard)

    async def _join(self, client: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=client)
        self._open.add(writer)
        try:
            inner, outer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            self._open.discard(writer)
            reset(writer.transport)
            return
        self._open.add(outer)
        tasks = [
            asyncio.ensure_future(self._pump(reader, outer, self.up)),
            asyncio.ensure_future(self._pump(inner, writer, self.down)),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            for each in (writer, outer):
                self._open.discard(each)
                each.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, toxics: Toxics) -> None:
        passed, resetting = 0, False
        try:
            while data := await source.read(PIECE):
                if toxics.reset_after >= 0 and not resetting:
                    resetting = True
                    asyncio.get_running_loop().call_later(toxics.reset_after, reset, sink.transport)
                await self._hold(toxics)
                if 0 <= toxics.limit <= passed + len(data):
                    sink.write(data[: toxics.limit - passed])
                    break
                passed += len(data)
                await self._send(sink, data, toxics)
            await self._hold(toxics)
            await asyncio.sleep(toxics.slow_close)
        except ConnectionError:
            pass
        sink.close()

    async def _hold(self, toxics: Toxics) -> None:
        waited = 0.0
        while toxics.black_hole and not (toxics.timeout and waited >= toxics.timeout):
            await asyncio.sleep(BLINK)
            waited += BLINK
        if toxics.black_hole:
            raise ConnectionAbortedError
        if toxics.latency or toxics.jitter:
            await asyncio.sleep(max(0.0, toxics.latency + self._dice.uniform(-1, 1) * toxics.jitter))

    async def _send(self, sink: asyncio.StreamWriter, data: bytes, toxics: Toxics) -> None:
        size = toxics.slice or PIECE
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            sink.write(piece)
            await sink.drain()
            if toxics.bandwidth:
                await asyncio.sleep(len(piece) / toxics.bandwidth)
            if toxics.slice_delay:
                await asyncio.sleep(toxics.slice_delay)
