"""TLS: a server context that reloads renewed certificates without a restart.

Reads the files that the settings name; reports renewals and errors on stderr.

A server has one SSLContext for its whole life.  Its SNI callback, which OpenSSL calls at each handshake with
or without a server name, selects the newest context.  A new certificate is therefore loaded into a new
context first, and takes effect for new connections; existing connections keep theirs.
"""

from __future__ import annotations

import ssl
from calendar import timegm
from pathlib import Path
from time import strptime
from typing import TYPE_CHECKING

from twofold.errors import ConfigError
from twofold.logs.console import say

if TYPE_CHECKING:
    from twofold.loadbalancer.config import ListenSettings

Stamps = tuple[tuple[int, int, int, int], ...]


class Certificates:
    """`context`: for create_server(ssl=...); call `renew` once a second.

    The constructor raises ConfigError if the files do not contain a certificate and its key.
    """

    def __init__(self, listen: ListenSettings) -> None:
        self._listen = listen
        self._stamps = self._seen = self._look()
        self.context = self._current = _build(listen)
        self.context.sni_callback = self._choose
        self.not_after = not_after(Path(listen.tls_certificate))  # of the current certificate; Unix seconds

    def renew(self) -> bool:
        """Load the files if they have changed; True if a new certificate is in use.

        Files are read when they are unchanged from one call to the next, because certificate and key are
        often written one after the other. Invalid files are reported once; the old certificate stays.
        """
        stamps = self._look()
        settled, self._seen = stamps == self._seen, stamps
        if stamps == self._stamps or not settled:
            return False
        self._stamps = stamps
        try:
            self._current = _build(self._listen)
            self.not_after = not_after(Path(self._listen.tls_certificate))
        except ConfigError as error:
            say("error", f"the new certificate is not used, the old one stays: {error}")
            return False
        say("info", f"new certificate from {self._listen.tls_certificate}")
        return True

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if self._current is not context:
            connection.context = self._current

    def _look(self) -> Stamps:
        listen = self._listen
        return tuple(
            _stamp(path) for path in (listen.tls_certificate, listen.tls_key, listen.tls_client_ca) if path
        )


def _stamp(path: str) -> tuple[int, int, int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return (0, 0, 0, 0)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _build(listen: ListenSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # No session tickets: callers keep their connections, so tickets save little; their keys would have to be
    # rotated and shared by the proxies, and a ticket would outlive the revocation of a client.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    certificate, key = listen.tls_certificate, listen.tls_key or None
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        if key is None and getattr(error, "reason", None) is None and isinstance(error, ssl.SSLError):
            complaint = "tls_certificate: it is no PEM file with a certificate and its key"
            raise ConfigError(complaint, "name the key with tls_key", certificate) from None
        raise _fault("tls_key" if key else "tls_certificate", key or certificate, error) from None
    if listen.tls_client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cafile=listen.tls_client_ca)
        except (OSError, ValueError) as error:
            raise _fault("tls_client_ca", listen.tls_client_ca, error) from None
    return context


def _no_passphrase() -> str:
    """Fail for an encrypted key; without this callback OpenSSL would prompt on the terminal."""
    raise ValueError("the key is encrypted")


def _fault(setting: str, path: str, error: Exception) -> ConfigError:
    reason = getattr(error, "reason", None) or error
    if reason == "KEY_VALUES_MISMATCH":
        return ConfigError(f"{setting}: the key is not the certificate's", "they must be a pair", path)
    if isinstance(error, ssl.SSLError):
        return ConfigError(f"{setting}: no certificate or key in PEM ({reason})", "it must be PEM", path)
    return ConfigError(f"{setting}: {reason}", "it must be a PEM file without passphrase", path)


# ---------------------------------------------------------------- when a certificate expires


def not_after(path: Path) -> int:
    """Unix time in seconds at which the first certificate of the file expires. Raises ConfigError."""
    try:
        pem = path.read_text("ascii")
        begin = pem.index("-----BEGIN CERTIFICATE-----")
        end = pem.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
        return _expiry(ssl.PEM_cert_to_DER_cert(pem[begin:end]))
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(
            f"tls_certificate: not readable as a certificate: {error}", place=str(path)
        ) from None


def _expiry(der: bytes) -> int:
    """`notAfter` (RFC 5280, 4.1) as Unix time, which the ssl module does not expose for a server."""
    _, at, _ = _element(der, 0)  # into Certificate
    _, at, _ = _element(der, at)  # into TBSCertificate
    if der[at] == 0xA0:  # the optional version
        _, _, at = _element(der, at)
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at)  # into Validity
    _, _, at = _element(der, at)  # past notBefore
    tag, start, end = _element(der, at)
    text = der[start:end].decode("ascii")
    if tag == 0x17:  # UTCTime, with a two-digit year: 4.1.2.5.1
        text = ("19" if text >= "50" else "20") + text
    return timegm(strptime(text, "%Y%m%d%H%M%SZ"))


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """(tag, start, end) of the DER element at `at`."""
    tag, length = der[at], der[at + 1]
    at += 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[at : at + size], "big")
        at += size
    return tag, at, at + length
