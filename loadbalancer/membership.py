"""Which instances there are meant to be: named by settings, by a watched file, by DNS, or by the admin.

Reads the file and asks the resolver; says on stderr what is wrong with either, and then the last
good answer holds.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from loadbalancer import address
from loadbalancer.address import Address, Upstream
from server.errors import ConfigError
from server.log import say

FORMS = "http://HOST:PORT, unix:/PATH or dns+http://NAME:PORT"


def parse_file(text: str, place: str) -> list[Upstream]:
    """One upstream a line, or a YAML list of them; raises ConfigError, which names the line."""
    found: dict[str, Upstream] = {}
    for number, line in enumerate(text.splitlines(), 1):
        word = line.split(" #")[0].strip().removeprefix("- ").strip().strip("'\"")
        if not word or word.startswith("#") or word == "---":
            continue
        upstream = address.upstream(word)
        if upstream is None:
            raise ConfigError(f"{word!r} is no instance", f"write {FORMS}", f"{place}:{number}")
        found[upstream.name] = upstream
    return list(found.values())


class WatchedFile:
    """The instances that a file names, read again when the file is another one or has changed."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._stamp: tuple[int, int, int] | None = None
        self.upstreams: list[Upstream] = []

    def look(self) -> bool:
        """True when what it names has changed. A bad or missing file changes nothing."""
        try:
            facts = self._path.stat()
            stamp = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            found = parse_file(self._path.read_text("utf-8"), str(self._path))
        except (OSError, UnicodeDecodeError) as error:
            if self._stamp is not None:
                say("error", f"{self._path}: cannot read it, the old instances stay: {error}")
            self._stamp = None
            return False
        except ConfigError as error:
            say("error", f"the old instances stay: {error}")
            return False
        changed = found != self.upstreams
        self.upstreams = found
        return changed


class Names:
    """What the names of `dns+http` stand for, as of the last answer of the resolver."""

    def __init__(self) -> None:
        self._known: dict[str, list[Address]] = {}

    async def resolve(self, upstream: Upstream) -> bool:
        """True when it stands for others now. While the resolver fails, the last answer holds."""
        wanted = upstream.address
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(
                wanted.host, wanted.port, type=socket.SOCK_STREAM
            )
        except OSError as error:
            if upstream.name not in self._known:
                say("warning", f"{upstream.name}: {error.strerror or error}")
                self._known[upstream.name] = []
            return False
        found = sorted({Address(str(info[4][0]), wanted.port) for info in infos}, key=str)
        changed = found != self._known.get(upstream.name)
        self._known[upstream.name] = found
        return changed

    def addresses(self, upstream: Upstream) -> list[Address]:
        return self._known.get(upstream.name, [])

    async def resolve_all(self, upstreams: list[Upstream]) -> bool:
        return any(await asyncio.gather(*map(self.resolve, upstreams)))
