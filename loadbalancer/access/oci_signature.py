"""Verification of OCI request signatures, version 1.

Reads the file of public keys once; verification is pure, with the time as an argument.  The scheme is
draft-cavage-http-signatures-08 with rsa-sha256, as restricted by Oracle's "Request Signatures".

The file names each key by the `keyId` that callers sign with, on a line before its PEM block:

    ocid1.tenancy.oc1..aaaa/ocid1.user.oc1..bbbb/20:3b:97:...        # or any other text
    -----BEGIN PUBLIC KEY-----
    ...

A signed head contains the hash of its body; the body is authentic only after a comparison with `body_digest`.
A signature can be replayed within the SKEW_S seconds in which it is valid, as with OCI.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from twofold.errors import ConfigError
from twofold.loadbalancer.http.forwarding import origin_form
from twofold.wire.request_head import RequestHead

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

SKEW_S = 300  # allowed difference of clocks (OCI: "Maximum Allowed Client Clock Skew")
MIN_BITS = 2048
SCHEME = b"signature"
NEVER = math.inf

_ALWAYS = frozenset((b"(request-target)", b"host"))
_WITH_BODY = frozenset((b"content-length", b"content-type", b"x-content-sha256"))
_BODY_METHODS = ("POST", "PUT", "PATCH")
# Neighbouring classes are disjoint, so matching is linear.
_PARAMETERS = re.compile(rb'[A-Za-z]+="[^"]*"(?:[ \t]*,[ \t]*[A-Za-z]+="[^"]*")*')
_PARAMETER = re.compile(rb'([A-Za-z]+)="([^"]*)"')
_DATE = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) "
    rb"([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)
_MONTHS = b"JanFebMarAprMayJunJulAugSepOctNovDec"
_FINGERPRINT = re.compile(r"(?:[0-9a-f]{2}:){15}[0-9a-f]{2}")


class Signature(NamedTuple):
    """The parameters of an Authorization field."""

    key_id: str
    headers: tuple[bytes, ...]  # the names of the signed fields, in this order
    value: bytes


class SignatureVerdict(NamedTuple):
    genuine: bool
    until_unix_s: float  # Unix time until which the verdict is valid


FORGED = SignatureVerdict(False, NEVER)


class Keys:
    """Public keys by keyId."""

    def __init__(self, keys: Mapping[str, RSAPublicKey]) -> None:
        self._keys = dict(keys)
        self._decoy = next(iter(self._keys.values()))

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read the file of keys. Raises ConfigError with the line number."""
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"signature_keys: cannot be read: {error}", place=str(path)) from None
        keys: dict[str, RSAPublicKey] = {}
        for number, key_id, pem in _blocks(text, str(path)):
            place = f"{path}:{number}"
            if key_id in keys:
                raise ConfigError(f"the keyId {key_id} is given twice", place=place)
            keys[key_id] = _public_key(key_id, pem, place)
        if not keys:
            raise ConfigError(
                "signature_keys: no key in the file",
                "write a keyId, then its PEM key below",
                str(path),
            )
        return cls(keys)

    def judge(self, head: RequestHead, now_unix_s: float) -> SignatureVerdict:
        """Verify the signature of `head` at the Unix time `now_unix_s`."""
        signature = read_authorization(head)
        if signature is None or not _covers(signature, head):
            return FORGED
        date, message = _date(head, signature), signing_string(head, signature.headers)
        if date is None or message is None:
            return FORGED
        # An unknown keyId takes as long as a known one, so that timing does not reveal the known keyIds.
        key = self._keys.get(signature.key_id)
        genuine = _verifies(key or self._decoy, signature.value, message)
        if key is None or not genuine or now_unix_s >= date + SKEW_S:
            return FORGED
        if now_unix_s < date - SKEW_S:
            return SignatureVerdict(False, date - SKEW_S)  # signed in the future; valid later
        return SignatureVerdict(True, date + SKEW_S)


def read_authorization(head: RequestHead) -> Signature | None:
    """Parse the Authorization field; None if it is missing, repeated, or of another scheme."""
    parameters = _parameters(_sole(head, b"authorization") or b"")
    if parameters.get(b"version") != b"1" or parameters.get(b"algorithm") != b"rsa-sha256":
        return None
    names = tuple(parameters.get(b"headers", b"").split(b" "))
    try:
        key_id = parameters[b"keyId"].decode()
        value = base64.b64decode(parameters[b"signature"], validate=True)
    except (KeyError, UnicodeDecodeError, binascii.Error):
        return None
    return Signature(key_id, names, value) if len(set(names)) == len(names) else None


def body_digest(head: RequestHead) -> bytes | None:
    """The SHA-256 that the signed head requires of the body; None if no body is signed."""
    if not _has_body(head):
        return None
    try:
        return base64.b64decode(_sole(head, b"x-content-sha256") or b"", validate=True)
    except binascii.Error:
        return b""  # matches no body


def signing_string(head: RequestHead, names: tuple[bytes, ...]) -> bytes | None:
    """The signed text; None unless each signed field occurs exactly once, because two are ambiguous."""
    lines = []
    for name in names:
        if name == b"(request-target)":
            lines.append(b"%b: %b %b" % (name, head.method.lower().encode(), origin_form(head.target)))
            continue
        value = _sole(head, name)
        if value is None:
            return None
        lines.append(b"%b: %b" % (name, value))
    return b"\n".join(lines)


def _parameters(value: bytes) -> dict[bytes, bytes]:
    scheme, _, text = value.partition(b" ")
    if scheme.lower() != SCHEME or not _PARAMETERS.fullmatch(text := text.strip(b" \t")):
        return {}
    pairs: list[tuple[bytes, bytes]] = _PARAMETER.findall(text)
    found = dict(pairs)
    return found if len(found) == len(pairs) else {}


def _covers(signature: Signature, head: RequestHead) -> bool:
    """Whether the signature covers all mandatory fields."""
    signed = set(signature.headers)
    needed = _ALWAYS | _WITH_BODY if _has_body(head) else _ALWAYS
    return needed <= signed and bool(signed & {b"date", b"x-date"})


def _has_body(head: RequestHead) -> bool:
    return head.method in _BODY_METHODS or head.chunked or bool(head.content_length)


def _sole(head: RequestHead, wanted: bytes) -> bytes | None:
    values = [value for name, value in head.headers if name == wanted]
    return values[0] if len(values) == 1 else None


def _date(head: RequestHead, signature: Signature) -> int | None:
    """Unix time of the signed date. x-date, for callers that cannot set Date, has precedence."""
    name = b"x-date" if b"x-date" in signature.headers else b"date"
    match = _DATE.fullmatch(_sole(head, name) or b"")
    if match is None:
        return None
    day, month, year, hour, minute, second = match.groups()
    number = _MONTHS.index(month) // 3 + 1
    try:
        return calendar.timegm((int(year), number, int(day), int(hour), int(minute), int(second)))
    except ValueError:  # the year 0
        return None


def _verifies(key: RSAPublicKey, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        key.verify(signature, message, PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


# ---------------------------------------------------------------- the file of keys


def _blocks(text: str, path: str) -> Iterator[tuple[int, str, bytes]]:
    """(line of the keyId, keyId, PEM) of each key."""
    key_id, begun, block = "", 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if block or line.startswith("-----BEGIN"):
            block.append(line)
        elif line and not line.startswith("#"):
            if key_id:
                raise ConfigError(f"the keyId {key_id} has no key", place=f"{path}:{begun}")
            key_id, begun = line, number
        if line.startswith("-----END"):
            if not key_id:
                raise ConfigError(
                    "a key without a line before it that says its keyId", place=f"{path}:{number}"
                )
            yield begun, key_id, "\n".join(block).encode() + b"\n"
            key_id, block = "", []
    if key_id or block:
        raise ConfigError("the last key is not complete", place=f"{path}:{begun}")


def _public_key(key_id: str, pem: bytes, place: str) -> RSAPublicKey:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except ValueError:
        raise ConfigError(f"the key of {key_id} is no public key in PEM", place=place) from None
    if not isinstance(key, RSAPublicKey) or key.key_size < MIN_BITS:
        raise ConfigError(f"the key of {key_id} is no RSA key of {MIN_BITS} bits or more", place=place)
    claimed = key_id.rpartition("/")[2]
    if _FINGERPRINT.fullmatch(claimed) and claimed != _fingerprint(key):
        raise ConfigError(f"the key of {key_id} has the fingerprint {_fingerprint(key)}", place=place)
    return key


def _fingerprint(key: RSAPublicKey) -> str:
    """The key's MD5 fingerprint in OCI's format; an identifier, not used for security."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.md5(encoded, usedforsecurity=False).digest().hex(":")
