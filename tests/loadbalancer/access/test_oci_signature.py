"""OCI request signatures: what Oracle's SDK signs is believed, and nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA1

from tests.support.loadbalancer.signed_requests import (
    BODILESS,
    BODY,
    KEY,
    NOW,
    WHOLE,
    authorization,
    parameters,
    pem,
    read,
    signed,
    unsigned,
)
from twofold.errors import ConfigError
from twofold.loadbalancer.access.oci_signature import NEVER, SKEW_S, Keys, SignatureVerdict, body_digest
from twofold.wire.request_head import parse_head

SIGNED = Path(__file__).parent / "signed"  # by oci.signer.Signer of oci 2.189.0
SIGNED_AT = 1795415747
GENUINE = SignatureVerdict(True, NOW + SKEW_S)
FORGED = SignatureVerdict(False, NEVER)
KEYS = Keys({"me": KEY.public_key()})


@pytest.mark.parametrize("name", ["post", "get"])
def test_signatures_of_the_oci_sdk(name: str) -> None:
    raw = (SIGNED / f"{name}.head").read_bytes()
    keys = Keys.read(SIGNED / "keys.txt")
    assert keys.judge(parse_head(raw), SIGNED_AT) == SignatureVerdict(True, SIGNED_AT + SKEW_S)
    digest = hashlib.sha256(BODY).digest() if name == "post" else None
    assert body_digest(parse_head(raw)) == digest
    for place in (raw.index(b" /") + 2, raw.index(b"lb.example"), raw.index(b"date: ") + 12):
        forged = bytearray(raw)
        forged[place] ^= 1
        assert not keys.judge(parse_head(bytes(forged)), SIGNED_AT).genuine


def test_a_genuine_request() -> None:
    assert KEYS.judge(signed(unsigned()), NOW) == GENUINE
    assert KEYS.judge(signed(unsigned(method="GET"), BODILESS), NOW) == GENUINE
    assert KEYS.judge(signed(unsigned(method="GET"), (*BODILESS[::-1],)), NOW + SKEW_S - 1) == GENUINE
    assert KEYS.judge(signed([*unsigned(), "Opc-Request-Id: a"], (*WHOLE, "opc-request-id")), NOW) == GENUINE


def test_an_absolute_target_is_signed_as_path_and_query() -> None:
    lines = unsigned(method="GET")
    given = authorization(parameters(lines, BODILESS))
    for start, good in (
        ("GET http://lb.example.com/predict?x=1%20b HTTP/1.1", True),
        ("GET http://lb.example.com/predict?x=1%20B HTTP/1.1", False),
        ("GET http://lb.example.com/?/predict?x=1%20b HTTP/1.1", False),
    ):
        assert KEYS.judge(read([start, *lines[1:], given]), NOW).genuine is good
    lines = unsigned(method="GET", target="/?x=/evil")
    given = authorization(parameters(lines, BODILESS))
    assert KEYS.judge(read(["GET http://lb.example.com?x=/evil HTTP/1.1", *lines[1:], given]), NOW) == GENUINE
    lines = unsigned(method="GET", target="/")
    given = authorization(parameters(lines, BODILESS))
    assert KEYS.judge(read(["GET http://lb.example.com HTTP/1.1", *lines[1:], given]), NOW) == GENUINE


@pytest.mark.parametrize("missing", [name for name in WHOLE if name != "date"])
def test_required_fields_must_be_signed(missing: str) -> None:
    names = tuple(name for name in WHOLE if name != missing)
    assert KEYS.judge(signed(unsigned(), names), NOW) == FORGED


def test_a_date_must_be_signed() -> None:
    assert KEYS.judge(signed(unsigned(), tuple(name for name in WHOLE if name != "date")), NOW) == FORGED
    lines = [line for line in unsigned(method="GET") if not line.startswith("Date")]
    lines.append(f"X-Date: {formatdate(NOW, usegmt=True)}")
    assert KEYS.judge(signed(lines, ("(request-target)", "host", "x-date")), NOW) == GENUINE


def test_x_date_goes_first() -> None:
    lines = [*unsigned(at=NOW - 7200, method="GET"), f"X-Date: {formatdate(NOW, usegmt=True)}"]
    assert KEYS.judge(signed(lines, (*BODILESS, "x-date")), NOW) == GENUINE
    assert KEYS.judge(signed(lines, BODILESS), NOW) == FORGED


def test_a_body_of_any_method_must_be_signed() -> None:
    lines = [*unsigned(method="DELETE"), "Content-Length: 3"]
    assert KEYS.judge(signed(lines, BODILESS), NOW) == FORGED


def test_old_and_future_signatures_are_refused() -> None:
    head = signed(unsigned())
    assert KEYS.judge(head, NOW + SKEW_S) == FORGED
    assert KEYS.judge(head, NOW - SKEW_S) == GENUINE
    early = KEYS.judge(head, NOW - SKEW_S - 1)
    assert early == SignatureVerdict(False, NOW - SKEW_S)
    assert KEYS.judge(head, early.until_unix_s) == GENUINE


@pytest.mark.parametrize(
    "date",
    [
        "yesterday",
        "1800000000",
        "Fri, 15 Jan 2027 08:00:00",
        "Fri, 15 Jan 2027 08:00:00 +0000",
        "15 Jan 2027",
        "Mon, 01 Jan 0000 00:00:00 GMT",
        "",
    ],
)
def test_dates_are_of_one_form(date: str) -> None:
    lines = [line if not line.startswith("Date") else f"Date: {date}" for line in unsigned()]
    assert KEYS.judge(signed(lines), NOW) == FORGED


CHANGES: list[Callable[[dict[str, str]], object]] = [
    lambda given: given.update(version="2"),
    lambda given: given.pop("version"),
    lambda given: given.update(algorithm="rsa-sha1"),
    lambda given: given.update(algorithm="hs2019"),
    lambda given: given.update(keyId="you"),
    lambda given: given.pop("keyId"),
    lambda given: given.update(headers=given["headers"].upper()),
    lambda given: given.update(headers=given["headers"].replace(" ", "  ")),
    lambda given: given.update(headers=given["headers"] + " host"),
    lambda given: given.update(headers=given["headers"] + " x-missing"),
    lambda given: given.update(headers=""),
    lambda given: given.pop("headers"),
    lambda given: given.update(signature=given["signature"][:-4]),
    lambda given: given.update(signature="%" + given["signature"][1:]),
    lambda given: given.update(signature=""),
    lambda given: given.pop("signature"),
    lambda given: given.update(signature=base64.b64encode(bytes(256)).decode()),
    lambda given: given.clear(),
]


@pytest.mark.parametrize("change", CHANGES)
def test_invalid_signatures_are_refused(change: Callable[[dict[str, str]], object]) -> None:
    lines = unsigned()
    given = parameters(lines, WHOLE)
    assert KEYS.judge(read([*lines, authorization(given)]), NOW) == GENUINE
    change(given)
    assert KEYS.judge(read([*lines, authorization(given)]), NOW) == FORGED


def test_another_hash_is_refused() -> None:
    lines = unsigned()
    assert KEYS.judge(read([*lines, authorization(parameters(lines, WHOLE, SHA1()))]), NOW) == FORGED


@pytest.mark.parametrize("line", ["X-Content-SHA256: eA==", "Date: Fri, 15 Jan 2027 08:00:00 GMT"])
def test_repeated_fields_are_refused(line: str) -> None:
    lines = unsigned()
    assert KEYS.judge(read([*lines, line, authorization(parameters(lines, WHOLE))]), NOW) == FORGED


def test_authorization_is_read_strictly() -> None:
    lines = unsigned()
    good = authorization(parameters(lines, WHOLE))
    twice = good.replace('version="1"', 'version="1",version="1"')
    for bad in (twice, good + ",", good + "x", good.replace('"1"', "1"), good.replace("Signature", "Bearer")):
        assert KEYS.judge(read([*lines, bad]), NOW) == FORGED
    assert KEYS.judge(read([*lines, good, good]), NOW) == FORGED
    assert KEYS.judge(read(lines), NOW) == FORGED
    assert (
        KEYS.judge(read([*lines, good.replace("Signature ", "signature   ").replace(",", " , ")]), NOW)
        == GENUINE
    )


def test_an_invalid_digest_is_refused() -> None:
    for value in ("%", "eA==", ""):
        lines = [line if not line.startswith("X-C") else f"X-Content-SHA256: {value}" for line in unsigned()]
        digest = body_digest(read(lines))
        assert digest is not None and len(digest) != 32


# ------------------------------------------------------------------ the file of keys


def written(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    return path


def test_a_file_of_two_keys(tmp_path: Path) -> None:
    other = rsa.generate_private_key(65537, 2048)
    keys = Keys.read(written(tmp_path, f"# ours\n\nyou\n{pem(other)}\n  me\n\n{pem(KEY)}"))
    assert len(keys) == 2 and keys.judge(signed(unsigned()), NOW) == GENUINE


BLOCK = pem(KEY)
FINGERPRINT = ":".join(["00"] * 16)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 0, "no key"),
        ("# nothing\n", 0, "no key"),
        ("me\n", 1, "not complete"),
        ("me\n" + BLOCK[:-30], 1, "not complete"),
        (BLOCK, 9, "without a line before"),
        (f"me\nyou\n{BLOCK}", 1, "keyId me has no key"),
        (f"me\n{BLOCK}\nme\n{BLOCK}", 12, "given twice"),
        (f"\nme\n{BLOCK.replace('MII', 'MIJ', 1)}", 2, "no public key"),
        (f"me\n{pem(rsa.generate_private_key(65537, 1024))}", 1, "no RSA key of 2048"),
        (f"me\n{pem(ec.generate_private_key(ec.SECP256R1()))}", 1, "no RSA key"),
        (f"t/u/{FINGERPRINT}\n{BLOCK}", 1, "has the fingerprint"),
    ],
)
def test_a_bad_file_says_where(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        Keys.read(path)
    assert caught.value.place == (f"{path}:{line}" if line else str(path))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            Keys.read(path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.read(tmp_path / "binary")
