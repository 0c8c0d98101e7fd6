"""TLS on uvloop, with real handshakes: what is offered, what is refused, and how certificates change."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
import uvloop

from tests.support.loadbalancer.certificate_authority import DAY, Authority, Pair
from twofold.errors import ConfigError
from twofold.loadbalancer.access.tls import Certificates, not_after
from twofold.loadbalancer.config import ListenSettings
from twofold.wire import request_head
from twofold.wire.proxy_protocol import MAX_SIZE, ConnectionAddresses, needed, parse, render

AUTHORITY = Authority()
LIMIT = 5.0  # seconds

Visit = Callable[[int], Awaitable[None]]


class Echo(asyncio.Protocol):
    """Stands for a client's connection: anything that is served."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's inherits from nothing

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def chosen(folder: Path, pair: Pair | None = None, authority: Authority | None = None) -> ListenSettings:
    certificate, key = (pair or AUTHORITY.issue()).write(folder, "server")
    client_ca = ""
    if authority is not None:
        client_ca = str(folder / "clients.pem")
        Path(client_ca).write_bytes(authority.pem)
    return ListenSettings(tls_certificate=certificate, tls_key=key, tls_client_ca=client_ca)


def serving(certificates: Certificates, visit: Visit) -> None:
    """Run `visit(port)` while a server as the proxy makes it listens there."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        problems: list[object] = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        server = await loop.create_server(
            Echo, "127.0.0.1", 0, ssl=certificates.context, ssl_handshake_timeout=LIMIT
        )
        try:
            async with asyncio.timeout(2 * LIMIT):
                await visit(server.sockets[0].getsockname()[1])
        finally:
            server.close()
        assert not problems, "a client's mistake is none of the event loop's"

    uvloop.run(run())


def client(pair: tuple[str, str] | None = None, authority: Authority = AUTHORITY) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2", "http/1.1"])
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


class Caller:
    """One TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int, context: ssl.SSLContext | None = None) -> Caller:
        streams = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context or client(), server_hostname="localhost"
        )
        return cls(*streams)

    async def echo(self, data: bytes = b"hello") -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))

    @property
    def tls(self) -> ssl.SSLObject:
        found = self.writer.get_extra_info("ssl_object")
        assert found is not None
        return found  # type: ignore[no-any-return]

    @property
    def certificate(self) -> bytes:
        found = self.tls.getpeercert(binary_form=True)
        assert found is not None
        return found

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (OSError, ssl.SSLError):
            pass


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.pem.decode())


def test_offered_protocols_and_ciphers(tmp_path: Path) -> None:
    async def visit(port: int) -> None:
        caller = await Caller.to(port)
        assert await caller.echo() == b"hello"
        assert caller.tls.selected_alpn_protocol() == "http/1.1"
        assert caller.tls.version() == "TLSv1.3"
        session = caller.tls.session
        assert session is None or not session.has_ticket
        await caller.close()
        older = client()
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        caller = await Caller.to(port, older)
        assert caller.tls.version() == "TLSv1.2" and await caller.echo() == b"hello"
        await caller.close()

    serving(Certificates(chosen(tmp_path)), visit)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_are_refused(tmp_path: Path) -> None:
    async def visit(port: int) -> None:
        oldest = client()
        oldest.minimum_version = oldest.maximum_version = ssl.TLSVersion.TLSv1_1
        oldest.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Caller.to(port, oldest)

    serving(Certificates(chosen(tmp_path)), visit)


def test_a_renewed_certificate_serves_new_connections_and_breaks_none(tmp_path: Path) -> None:
    old, new = AUTHORITY.issue(), AUTHORITY.issue(lasting=90 * DAY)
    certificates = Certificates(chosen(tmp_path, old))

    async def visit(port: int) -> None:
        before = await Caller.to(port)
        assert before.certificate == der(old)
        assert not certificates.renew()
        new.write(tmp_path, "server")
        assert not certificates.renew(), "files may still be in the making"
        assert certificates.renew()
        assert not certificates.renew()
        after = await Caller.to(port)
        assert after.certificate == der(new)
        assert await before.echo(b"a") + await after.echo(b"b") == b"ab"
        assert certificates.not_after == new.certificate.not_valid_after_utc.timestamp()
        await before.close()
        await after.close()

    serving(certificates, visit)


def test_a_client_that_names_no_server_gets_the_new_one_too(tmp_path: Path) -> None:
    new, certificates = AUTHORITY.issue(), Certificates(chosen(tmp_path))
    new.write(tmp_path, "server")
    assert [certificates.renew(), certificates.renew()] == [False, True]

    async def visit(port: int) -> None:
        context = client()
        context.check_hostname = False
        streams = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="")
        caller = Caller(*streams)
        assert caller.certificate == der(new)
        await caller.close()

    serving(certificates, visit)


@pytest.mark.parametrize("spoil", ["certificate", "key", "gone", "mismatch"])
def test_bad_new_files_change_nothing_and_are_reported_once(
    tmp_path: Path, spoil: str, capfd: pytest.CaptureFixture[str]
) -> None:
    old = AUTHORITY.issue()
    settings = chosen(tmp_path, old)
    certificates = Certificates(settings)
    certificate, key = Path(settings.tls_certificate), Path(settings.tls_key)
    if spoil == "gone":
        key.unlink()
    elif spoil == "mismatch":
        key.write_bytes(AUTHORITY.issue().key_pem())
    else:
        (certificate if spoil == "certificate" else key).write_text("nonsense")

    async def visit(port: int) -> None:
        assert [certificates.renew() for _ in range(4)] == [False] * 4
        caller = await Caller.to(port)
        assert caller.certificate == der(old) and await caller.echo() == b"hello"
        await caller.close()
        new = AUTHORITY.issue()
        new.write(tmp_path, "server")  # and it is not given up
        assert [certificates.renew() for _ in range(2)] == [False, True]
        caller = await Caller.to(port)
        assert caller.certificate == der(new)
        await caller.close()

    serving(certificates, visit)
    lines = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and "the old one stays" in lines[0]


# ------------------------------------------------------------------ behind a PROXY line


class Announced(asyncio.BufferedProtocol):
    """Reads the line in the clear, and not a byte more; the handshake comes after it."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.line = b""
        self.room = bytearray(MAX_SIZE)
        self.upgrade: asyncio.Task[object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.room)[: needed(self.line)]

    def buffer_updated(self, nbytes: int) -> None:
        self.line += self.room[:nbytes]
        if parse(self.line) is not None:
            self.transport.pause_reading()
            loop, echo = asyncio.get_running_loop(), Echo()

            async def upgrade() -> None:
                upgraded = await loop.start_tls(
                    self.transport, echo, self.certificates.context, server_side=True
                )
                assert upgraded is not None
                echo.connection_made(upgraded)

            self.upgrade = loop.create_task(upgrade())


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_handshake_behind_a_proxy_line(tmp_path: Path, version: str, at_once: bool) -> None:
    certificates = Certificates(chosen(tmp_path))
    line = render(version, ConnectionAddresses("192.0.2.1", 1, "192.0.2.2", 443))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Announced(certificates), "127.0.0.1", 0)
        try:
            async with asyncio.timeout(LIMIT):
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(line if at_once else line[:7])
                if not at_once:
                    await asyncio.sleep(0.02)
                    writer.write(line[7:])
                await writer.start_tls(client(), server_hostname="localhost")
                caller = Caller(reader, writer)
                assert await caller.echo() == b"hello"
                await caller.close()
        finally:
            server.close()

    uvloop.run(run())


# ------------------------------------------------------------------ clients with certificates


async def refused(port: int, context: ssl.SSLContext) -> bool:
    """In TLS 1.3 a client learns only by its first read that it was not let in."""
    try:
        caller = await Caller.to(port, context)
        try:
            await caller.echo()
        finally:
            await caller.close()
    except (OSError, asyncio.IncompleteReadError):
        return True
    return False


def test_clients_must_show_a_certificate_of_the_right_authority(tmp_path: Path) -> None:
    ours, theirs = Authority("ours"), Authority("theirs")
    good = client(ours.issue("client").write(tmp_path, "good"))
    bad = client(theirs.issue("client").write(tmp_path, "bad"))
    late = client(ours.issue("client", -DAY).write(tmp_path, "late"))

    async def visit(port: int) -> None:
        assert not await refused(port, good)
        for context in (bad, late, client()):
            assert await refused(port, context)
        assert not await refused(port, good)

    serving(Certificates(chosen(tmp_path, authority=ours)), visit)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_another_authority_for_clients_holds_at_once(tmp_path: Path, newest: ssl.TLSVersion) -> None:
    first, second = Authority("first"), Authority("second")
    one = client(first.issue("client").write(tmp_path, "one"))
    two = client(second.issue("client").write(tmp_path, "two"))
    one.maximum_version = two.maximum_version = newest
    settings = chosen(tmp_path, authority=first)
    certificates = Certificates(settings)

    async def visit(port: int) -> None:
        assert not await refused(port, one) and await refused(port, two)
        Path(settings.tls_client_ca).write_bytes(second.pem)
        assert [certificates.renew(), certificates.renew()] == [False, True]
        assert await refused(port, one) and not await refused(port, two)

    serving(certificates, visit)


# ------------------------------------------------------------------ garbage


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nhost: h\r\n\r\n",
        bytes(64),
        b"\x16\x03\x01\xff\xff" + b"x" * 600,
        b"\x16\x03\x01\x00\x05hello",
    ],
)
def test_garbage_instead_of_a_handshake_ends_its_connection_only(tmp_path: Path, garbage: bytes) -> None:
    async def visit(port: int) -> None:
        good = await Caller.to(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(garbage)
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""
        assert answer == b"" or answer[0] == 0x15  # an alert (RFC 8446, 5.1), or nothing
        writer.close()
        assert await good.echo() == b"hello"
        assert not await refused(port, client())
        await good.close()

    serving(Certificates(chosen(tmp_path)), visit)


def test_a_handshake_on_a_plain_port_is_no_request() -> None:
    outgoing = ssl.MemoryBIO()
    hello = client().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    first = outgoing.read()
    for data in (first, first[:1]):
        refusal = request_head.doomed(data)
        assert refusal is not None and refusal.status == 400


# ------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / "server.crt").write_text("nonsense"), "no certificate or key in PEM"),
        (lambda folder: (folder / "server.key").write_text("nonsense"), "no certificate or key in PEM"),
        (
            lambda folder: (folder / "server.key").write_bytes(AUTHORITY.issue().key_pem()),
            "not the certificate's",
        ),
        (lambda folder: (folder / "server.key").write_bytes(AUTHORITY.issue().key_pem(b"x")), "encrypted"),
        (lambda folder: (folder / "server.key").unlink(), "No such file"),
        (lambda folder: (folder / "clients.pem").write_text("nonsense"), "tls_client_ca"),
    ],
)
def test_files_that_cannot_serve(tmp_path: Path, spoil: Callable[[Path], object], complaint: str) -> None:
    settings = chosen(tmp_path, authority=AUTHORITY)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=complaint) as caught:
        Certificates(settings)
    assert str(tmp_path) in caught.value.place


def test_a_key_in_the_certificates_file(tmp_path: Path) -> None:
    pair = AUTHORITY.issue()
    both = tmp_path / "both.pem"
    both.write_bytes(pair.key_pem() + pair.pem)
    certificates = Certificates(ListenSettings(tls_certificate=str(both)))
    assert certificates.not_after == pair.certificate.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("days", [-3, 1, 400, 9000, 20000])  # the last ones are written with four digits
def test_when_it_expires(tmp_path: Path, days: int) -> None:
    pair = AUTHORITY.issue(lasting=datetime.timedelta(days))
    path = tmp_path / "chain.pem"
    path.write_bytes(b"# a comment\n" + pair.pem + AUTHORITY.pem)
    assert not_after(path) == pair.certificate.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("cut", [4, 30])
def test_a_certificate_that_breaks_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.pem"
    path.write_text(ssl.DER_cert_to_PEM_cert(der(AUTHORITY.issue())[:cut]))
    with pytest.raises(ConfigError, match="not readable as a certificate"):
        not_after(path)
