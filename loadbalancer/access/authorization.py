"""Authorization: of connections by the client's address, of requests by token or signature.

Reads the files of tokens and keys when it is made, at the start and at a reload; then it is pure, with the
time as an argument.  A refusal reveals neither whether the deployment exists nor the reason
(`NotAuthorizedOrNotFound`, section 2.2 of the contract).
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from twofold.errors import ConfigError
from twofold.loadbalancer.access import identity
from twofold.loadbalancer.access.oci_signature import SCHEME, Keys, body_digest
from twofold.loadbalancer.http import forwarding
from twofold.loadbalancer.http.error_responses import NOT_FOUND
from twofold.net.networks import Networks
from twofold.wire.refusal import Refusal
from twofold.wire.request_head import RequestHead

if TYPE_CHECKING:
    from twofold.loadbalancer.config import Config

NEVER = math.inf  # expiry time of a verdict that does not expire
LOOP = Refusal(
    508, "LoopDetected", "the request has been here before; an upstream leads back to this address"
)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1


class Authorization:
    """Applies the settings `allow`, `trusted_proxies`, `bearer_token_file` and `signature_keys`.

    With both tokens and keys, a request needs one of the two.  Raises ConfigError for an invalid file.
    """

    def __init__(self, config: Config) -> None:
        access = config.access
        self._allowed = Networks(access.allow)
        self._hops = identity.hops(config)
        self._announced = config.listen.proxy_protocol != "off"
        self._tokens = read_tokens(Path(access.bearer_token_file)) if access.bearer_token_file else ()
        self._keys = Keys.read(Path(access.signature_keys)) if access.signature_keys else None

    def admits(self, ip: str) -> bool:
        """Whether a client with this address may connect. "" is a Unix socket, always admitted."""
        return not ip or not self._allowed or ip in self._allowed

    def expects_line(self, ip: str) -> bool:
        """Whether this peer must send a PROXY line, which then contains the address to admit."""
        return self._announced and ip in self._hops.trusted

    def refusal(self, head: RequestHead, now_unix: float) -> tuple[Refusal | None, float]:
        """(refusal or None, Unix time in seconds until which this verdict may be cached)."""
        genuine, until = self._authorised(head, now_unix)
        if not genuine:
            return NOT_FOUND, until
        return (LOOP if forwarding.loops(head, self._hops) else None), until

    def digest(self, head: RequestHead) -> bytes | None:
        """The SHA-256 that the signature requires of the body; None: any body.

        The verdict on a head is cached, so the body must be compared for each request.
        """
        if self._keys is None or (self._tokens and _scheme(head) != SCHEME):
            return None
        return body_digest(head)

    def _authorised(self, head: RequestHead, now_unix: float) -> tuple[bool, float]:
        if not self._tokens and self._keys is None:
            return True, NEVER
        if self._keys is not None and _scheme(head) == SCHEME:
            return self._keys.judge(head, now_unix)
        return self._bears_token(head), NEVER

    def _bears_token(self, head: RequestHead) -> bool:
        scheme, _, token = _authorization(head).partition(b" ")
        given = _hashed(token.strip(b" \t"))
        found = False
        for known in self._tokens:  # all of them, in constant time
            found |= hmac.compare_digest(given, known)
        return found and scheme.lower() == b"bearer"


def body_refusal(wanted: bytes, digest: bytes) -> Refusal | None:
    """The refusal if `digest`, the body's SHA-256, differs from `wanted`; else None."""
    return None if hmac.compare_digest(wanted, digest) else NOT_FOUND


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """The SHA-256 of each token in the file, one a line; several allow a rotation.

    Hashes have equal length, so that comparing does not reveal a token's. Raises ConfigError.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"bearer_token_file: cannot be read: {error}", place=str(path)) from None
    found = []
    for number, line in enumerate(lines, 1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        if not _TOKEN.fullmatch(token):  # the message must not contain the token
            raise ConfigError(
                "bearer_token_file: not a token", "letters, digits and -._~+/ only", f"{path}:{number}"
            )
        found.append(_hashed(token.encode()))
    if not found:
        raise ConfigError("bearer_token_file: no token in the file", "write one on a line", str(path))
    return tuple(found)


def _authorization(head: RequestHead) -> bytes:
    values = [value for name, value in head.headers if name == b"authorization"]
    return values[0] if len(values) == 1 else b""


def _scheme(head: RequestHead) -> bytes:
    return _authorization(head).partition(b" ")[0].lower()


def _hashed(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
