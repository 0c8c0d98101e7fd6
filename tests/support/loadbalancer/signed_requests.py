"""Requests signed as OCI has it, with a key that is made when this is imported."""

from __future__ import annotations

import base64
import hashlib
from email.utils import formatdate

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from twofold.loadbalancer.access.oci_signature import signing_string
from twofold.wire.request_head import RequestHead, parse_head

NOW = 1_800_000_000
BODY = b"[1, 2]"
BODILESS = ("(request-target)", "host", "date")
WHOLE = (*BODILESS, "content-length", "content-type", "x-content-sha256")
KEY = rsa.generate_private_key(65537, 2048)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def unsigned(at: int = NOW, method: str = "POST", target: str = "/predict?x=1%20b") -> list[str]:
    lines = [f"{method} {target} HTTP/1.1", "Host: lb.example.com", f"Date: {formatdate(at, usegmt=True)}"]
    if method == "POST":
        digest = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
        lines += [
            f"Content-Length: {len(BODY)}",
            "Content-Type: application/json",
            f"X-Content-SHA256: {digest}",
        ]
    return lines


def read(lines: list[str]) -> RequestHead:
    return parse_head("\r\n".join([*lines, "", ""]).encode())


def parameters(
    lines: list[str], names: tuple[str, ...], algorithm: HashAlgorithm | None = None
) -> dict[str, str]:
    message = signing_string(read(lines), tuple(name.encode() for name in names))
    assert message is not None
    value = base64.b64encode(KEY.sign(message, PKCS1v15(), algorithm or SHA256())).decode()
    fixed = {"version": "1", "keyId": "me", "algorithm": "rsa-sha256"}
    return {**fixed, "headers": " ".join(names), "signature": value}


def authorization(given: dict[str, str]) -> str:
    return "Authorization: Signature " + ",".join(f'{name}="{value}"' for name, value in given.items())


def signed(lines: list[str], names: tuple[str, ...] = WHOLE) -> RequestHead:
    return read([*lines, authorization(parameters(lines, names))])
