"""Everything at random at once: sizes, pieces, pauses, pipelines, departures, breaks. Answers stay exact.

Each request carries its own number, and its answer must be that request's: one byte of another would
show.  Afterwards nothing may be in hand, and no descriptor left.  The seed is printed by a failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.loadbalancer.balancer_process import balance
from tests.support.loadbalancer.http_clients import Broken, Caller, post
from tests.support.loadbalancer.scripted_instance import STREAM, Exchange, Origin, answer, chunk

pytestmark = pytest.mark.alone

SEED = 20261123
SIZES = (0, 1, 40, 1000, 6000, 49_152, 49_153, 70_000, 300_000)
CLIENTS = 24


def pattern(number: int, size: int) -> bytes:
    """Bytes that belong to that number and to no other."""
    block = hashlib.sha256(b"%d" % number).hexdigest().encode()
    return (block * (size // len(block) + 1))[:size]


class Instance:
    """Answers with what the path asks for, in a way that is drawn: whole, in pieces, in chunks, broken."""

    def __init__(self, dice: random.Random, breaks: float) -> None:
        self.dice = dice
        self.breaks = breaks  # part of the answers that never end

    async def __call__(self, exchange: Exchange) -> None:
        dice = self.dice
        _, number, size = exchange.target.rsplit("/", 2)
        body = pattern(int(number), int(size))
        if dice.random() < 0.05:  # before the body is here
            exchange.send(answer(b"early", 422, b"connection: close\r\n"))
            exchange.close()
            return
        asked = await exchange.whole()
        assert asked == pattern(int(number), len(asked))
        if dice.random() < 0.3:
            await asyncio.sleep(dice.random() * 0.01)
        way = dice.random()
        if way < self.breaks:
            data = answer(body, fields=b"x-number: %b\r\n" % number.encode())
            exchange.send(data[: dice.randrange(len(data))])
            exchange.reset()
        elif way < 0.5:
            exchange.send(answer(body, fields=b"x-number: %b\r\n" % number.encode()))
        elif way < 0.75:
            await self._in_pieces(exchange, answer(body, fields=b"x-number: %b\r\n" % number.encode()))
        else:
            pieces = [body[at : at + 7000] for at in range(0, len(body), 7000)]
            data = STREAM.replace(b"\r\n\r\n", b"\r\nx-number: %b\r\n\r\n" % number.encode())
            await self._in_pieces(exchange, data + b"".join(map(chunk, pieces)) + b"0\r\n\r\n")

    async def _in_pieces(self, exchange: Exchange, data: bytes) -> None:
        for piece in torn(self.dice, data):
            exchange.send(piece)
            await asyncio.sleep(self.dice.choice((0, 0.001)))


def torn(dice: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted({0, len(data), *(dice.randrange(len(data)) for _ in range(dice.randrange(5)))})
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


class ClientSession:
    """One client after another, each with a handful of requests on its connection."""

    def __init__(self, port: int, dice: random.Random, number: Callable[[], int]) -> None:
        self.port = port
        self.dice = dice
        self.number = number
        self.seen: Counter[str] = Counter()

    async def run(self, until: float) -> None:
        while asyncio.get_running_loop().time() < until:
            async with Caller(self.port, 20.0) as caller:
                try:
                    await self._talk(caller)
                except (Broken, ConnectionError):
                    self.seen["broken"] += 1

    async def _talk(self, caller: Caller) -> None:
        dice = self.dice
        asked = [(self.number(), dice.choice(SIZES)) for _ in range(dice.choice((1, 1, 2, 5)))]
        data = b"".join(
            post(pattern(number, dice.choice(SIZES)), target=b"/predict/%d/%d" % (number, size))
            for number, size in asked
        )
        leaves = dice.random() < 0.15
        if leaves:
            data = data[: dice.randrange(len(data))]
        for piece in torn(dice, data) if data else []:
            caller.send(piece)
            await asyncio.sleep(dice.choice((0, 0, 0.002)))
        if leaves:
            await asyncio.sleep(dice.random() * 0.01)
            caller.reset() if dice.random() < 0.5 else caller.close()
            self.seen["left"] += 1
            return
        for number, size in asked:
            if dice.random() < 0.1:
                await asyncio.sleep(0.02)  # takes its time to read
            made = await caller.answer()
            self.seen[str(made.status)] += 1
            if made.status == 200:
                assert made.fields["x-number"] == str(number) and made.body == pattern(number, size)
            else:
                assert made.status in (422, 429, 502, 503), made
            if made.closes:
                return


def storm(
    folder: Path, seed: int, seconds: float, *options: str, environ: Mapping[str, str] | None = None
) -> str:
    """What the load balancer has printed."""

    async def scenario() -> str:
        dice, count = random.Random(seed), iter(range(1, 1 << 60))
        origins = [await Origin(Instance(dice, breaks), workers=8).start() for breaks in (0.0, 0.02)]
        try:
            async with balance(
                folder, *options, instances=[one.url for one in origins], environ=environ
            ) as lb:
                lb.remember_fds()
                clients = [ClientSession(lb.port, dice, lambda: next(count)) for _ in range(CLIENTS)]
                until = asyncio.get_running_loop().time() + seconds
                async with asyncio.timeout(seconds + 60):
                    await asyncio.gather(*(client.run(until) for client in clients))
                seen = sum((client.seen for client in clients), Counter())
                print(f"seed {seed}: {dict(seen)}")
                assert seen["200"] > 100 and seen["left"] > 10 and seen["422"] > 5, seen
                await lb.settled(10)
                assert "a bug in" not in lb.printed() and "Traceback" not in lb.printed()
                return lb.printed()
        finally:
            for one in origins:
                await one.stop()

    return asyncio.run(scenario())


WITHOUT, NARROW, TWO = (), ("--bandwidth-mbps", "80"), ("--bandwidth-mbps", "200", "--proxies", "2")


@pytest.mark.parametrize("options", [WITHOUT, NARROW, TWO], ids=["unlimited", "80 Mbps", "two proxies"])
def test_every_answer_belongs_to_its_request(tmp_path: Path, options: tuple[str, ...]) -> None:
    storm(tmp_path, SEED, 4.0, *options)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_every_answer_belongs_to_its_request_for_longer(tmp_path: Path, seed: int) -> None:
    storm(tmp_path, seed, 15.0, *(WITHOUT, NARROW, TWO)[seed % 3])
