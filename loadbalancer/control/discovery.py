"""Discovery of instances: from the settings, a watched file, and DNS.

Touches the file, the resolver and stderr.  After an error of either, the last good result applies.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twofold.errors import ConfigError
from twofold.loadbalancer.control.endpoint import Endpoint
from twofold.loadbalancer.endpoint_record import DNS, FILE, SETTINGS
from twofold.logs.console import say
from twofold.net import address
from twofold.net.address import Address, Target

FORMS = "http://HOST:PORT, unix:/PATH or dns+http://NAME:PORT"
INTERVAL_S = 0.5
SETTLED_S = 0.1  # time since the last modification after which a file is assumed to be complete
PATIENCE_S = 5.0  # timeout of the resolver


def parse_file(text: str, place: str) -> list[Target]:
    """Parse one upstream a line, or a YAML list. Raises ConfigError with the line number."""
    found: dict[str, Target] = {}
    for number, word in _entries(text, place):
        upstream = address.upstream(word)
        if upstream is None:
            raise ConfigError(f"{word!r} is no instance", f"write {FORMS}", f"{place}:{number}")
        found[upstream.name] = upstream
    return list(found.values())


def _entries(text: str, place: str) -> Iterator[tuple[int, str]]:
    """(line number, entry)."""
    lines = [(n, line.partition(" #")[0].strip()) for n, line in enumerate(text.splitlines(), 1)]
    lines = [(n, line) for n, line in lines if line and not line.startswith("#")]
    if any(line.startswith(("-", "[")) for _, line in lines[:1]):
        yield from _yaml_entries(text, place)
    else:
        yield from lines


def _yaml_entries(text: str, place: str) -> Iterator[tuple[int, str]]:
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigError(f"not YAML: {what}", "", f"{place}:{mark.line + 1}" if mark else place) from None
    if node is not None and not isinstance(node, yaml.SequenceNode):
        raise ConfigError("not a list", f"write {FORMS}, one a line", place)
    for each in node.value if node is not None else ():
        yield each.start_mark.line + 1, str(each.value)


class WatchedFile:
    """The instances that a file lists, read again when the file is replaced or modified."""

    def __init__(self, path: str, known: Iterable[Target] = ()) -> None:
        """`known`: the instances that apply until the file has been read."""
        self._path = Path(path)
        self._stamp: tuple[int, int, int] | None = None
        self._missed = False
        self.upstreams = list(known)
        self.read = False  # at least once
        self.pause_s = INTERVAL_S  # until the next look()

    def look(self) -> bool:
        """Read the file if it has changed; True if the list has changed.

        An invalid, empty or missing file changes nothing.
        """
        try:
            facts = self._path.stat()
            stamp = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            self.pause_s = INTERVAL_S
            if stamp == self._stamp:
                return False
            if self._stamp is not None and abs(time.time() - facts.st_mtime) < SETTLED_S:
                self.pause_s = SETTLED_S  # the file may be incomplete
                return False
            self._stamp = stamp
            found = parse_file(self._path.read_text("utf-8"), str(self._path))
        except (OSError, UnicodeDecodeError) as error:
            if not self._missed:
                say("error", f"the old instances stay: {self._path}: {getattr(error, 'strerror', error)}")
            self._missed = isinstance(error, OSError)
            return False
        except ConfigError as error:
            say("error", f"the old instances stay: {error}")
            return False
        self._missed = False
        return self._take(found)

    def _take(self, found: list[Target]) -> bool:
        if self.upstreams and not found:
            say("error", f"the old instances stay: {self._path} names none")
            return False
        changed = found != self.upstreams or not self.read
        self.upstreams, self.read = found, True
        return changed


class Names:
    """The addresses of `dns+http` names, as of the last answer of the resolver."""

    def __init__(self) -> None:
        self._known: dict[str, list[Address]] = {}
        self._failing: set[str] = set()
        self.heard: set[str] = set()  # names that were resolved at least once

    def remember(self, name: str, where: Address) -> None:
        """Add an address that the previous controller resolved."""
        self._known.setdefault(name, []).append(where)

    def addresses(self, upstream: Target) -> list[Address]:
        return self._known.get(upstream.name, [])

    async def resolve(self, upstream: Target) -> bool:
        """Resolve a name; True if its addresses have changed. On failure the last answer applies."""
        wanted, loop = upstream.address, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_S):
                infos = await loop.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            if upstream.name not in self._failing:
                self._failing.add(upstream.name)
                why = getattr(error, "strerror", None) or "the resolver does not answer"
                say("warning", f"{upstream.name}: {why}; what it stood for before holds")
            return False
        self._failing.discard(upstream.name)
        first = upstream.name not in self.heard
        self.heard.add(upstream.name)
        # Only one address family is used, because an instance with both would be counted twice.
        family = min((info[0] for info in infos), default=socket.AF_INET)
        hosts = {str(info[4][0]) for info in infos if info[0] == family}
        found = [Address(host, wanted.port) for host in sorted(hosts)]
        changed = first or found != sorted(self.addresses(upstream), key=lambda each: each.host)
        self._known[upstream.name] = found
        return changed

    async def resolve_all(self, upstreams: Iterable[Target]) -> bool:
        return any(await asyncio.gather(*map(self.resolve, upstreams)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """One instance that a source names."""

    where: Address
    source: str
    origin: str = ""


@dataclass(slots=True)
class Discovery:
    """The sources of instances except the admin."""

    named: list[Target]
    file: WatchedFile | None = None
    names: Names = field(default_factory=Names)

    @classmethod
    def of(cls, texts: Sequence[str], path: str, known: Iterable[Endpoint]) -> Discovery:
        """The sources that the settings configure.

        `known`: endpoints of the previous controller, which apply until file and resolver have answered.
        """
        named = [found for text in texts if (found := address.upstream(text))]
        names, listed = Names(), dict[str, Target]()
        for endpoint in known:
            if endpoint.source == DNS:
                names.remember(endpoint.origin, endpoint.where)
            text = {DNS: endpoint.origin, FILE: endpoint.name}.get(endpoint.source, "")
            if text and text not in texts and (upstream := address.upstream(text)):
                listed[upstream.name] = upstream
        return cls(named, WatchedFile(path, listed.values()) if path else None, names)

    def dns(self) -> list[Target]:
        named = self.named + (self.file.upstreams if self.file else [])
        return [upstream for upstream in named if upstream.dns]

    @property
    def certain(self) -> bool:
        """True once file and DNS have answered; only then does absence mean removal."""
        return (self.file is None or self.file.read) and all(
            upstream.name in self.names.heard for upstream in self.dns()
        )

    def wanted(self) -> dict[str, Wanted]:
        """The instances by name; if several sources name one, the last source applies."""
        wanted: dict[str, Wanted] = {}
        listed = self.file.upstreams if self.file else []
        for source, upstreams in ((SETTINGS, self.named), (FILE, listed)):
            for upstream in upstreams:
                if upstream.dns:
                    for where in self.names.addresses(upstream):
                        wanted[Target(where).name] = Wanted(where, DNS, upstream.name)
                else:
                    wanted[upstream.name] = Wanted(upstream.address, source)
        return wanted
