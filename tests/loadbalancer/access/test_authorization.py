"""Who is let in: addresses, tokens, signatures, loops, and how long the verdict holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.support.loadbalancer.signed_requests import (
    BODY,
    KEY,
    NOW,
    WHOLE,
    authorization,
    parameters,
    pem,
    read,
    unsigned,
)
from twofold.errors import ConfigError
from twofold.loadbalancer.access import identity
from twofold.loadbalancer.access.authorization import NEVER, Authorization, body_refusal
from twofold.loadbalancer.access.oci_signature import SKEW_S
from twofold.loadbalancer.config import AccessSettings, Config, ListenSettings
from twofold.loadbalancer.http.error_responses import NOT_FOUND
from twofold.wire.request_head import REASONS, RequestHead, parse_head

TOKENS = "# the new one\nnew-token.0123456789==\n\n  old/token+1~_  \n"


def request(*fields: str) -> RequestHead:
    return parse_head("\r\n".join(["GET /predict HTTP/1.1", "host: h", *fields, "", ""]).encode())


def guard(**access: object) -> Authorization:
    return Authorization(Config(access=AccessSettings(**access)))  # type: ignore[arg-type]


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    return str(path)


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys"
    path.write_text(f"me\n{pem(KEY)}")
    return str(path)


def test_without_settings_every_client_is_authorised() -> None:
    chosen = guard()
    assert chosen.admits("192.0.2.1") and chosen.admits("fd00::1") and chosen.admits("")
    assert chosen.refusal(request(), 0.0) == (None, NEVER)
    assert chosen.digest(request()) is None


def test_an_allow_list() -> None:
    chosen = guard(allow=("10.0.0.0/8", "fd00::/8"))
    assert chosen.admits("10.1.2.3") and chosen.admits("::ffff:10.1.2.3") and chosen.admits("fd00::1")
    assert not chosen.admits("192.0.2.1") and not chosen.admits("nonsense")
    assert chosen.admits("")  # a Unix socket is guarded by its mode


def test_a_proxy_line_is_expected_of_trusted_peers_where_it_is_set() -> None:
    access = AccessSettings(trusted_proxies=("10.0.0.0/8",))
    on = Authorization(Config(access=access, listen=ListenSettings(proxy_protocol="v1v2")))
    assert on.expects_line("10.0.0.1") and not on.expects_line("192.0.2.1") and not on.expects_line("")
    assert not Authorization(Config(access=access)).expects_line("10.0.0.1")


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        (["Authorization: Bearer new-token.0123456789=="], True),
        (["authorization: bearer  old/token+1~_"], True),
        (["Authorization: Bearer new-token.0123456789="], False),
        (["Authorization: Bearer new-token.0123456789==x"], False),
        (["Authorization: Bearer NEW-token.0123456789=="], False),
        (["Authorization: Bearer "], False),
        (["Authorization: Bearer # the new one"], False),
        (["Authorization: new-token.0123456789=="], False),
        (["Authorization: Basic new-token.0123456789=="], False),
        (["Authorization: Bearer old/token+1~_", "Authorization: Bearer old/token+1~_"], False),
        (["Proxy-Authorization: Bearer old/token+1~_"], False),
        ([], False),
    ],
)
def test_a_token(tokens: str, fields: list[str], good: bool) -> None:
    expected = None if good else NOT_FOUND
    assert guard(bearer_token_file=tokens).refusal(request(*fields), 0.0) == (expected, NEVER)


def test_a_signature(keys: str) -> None:
    chosen, lines = guard(signature_keys=keys), unsigned()
    head = read([*lines, authorization(parameters(lines, WHOLE))])
    assert chosen.refusal(head, NOW) == (None, NOW + SKEW_S)
    assert chosen.refusal(head, NOW + SKEW_S) == (NOT_FOUND, NEVER)
    assert chosen.refusal(head, NOW - 1000) == (NOT_FOUND, NOW - SKEW_S)
    assert chosen.refusal(read(lines), NOW) == (NOT_FOUND, NEVER)


def test_the_body_belongs_to_the_signature(keys: str) -> None:
    chosen, lines = guard(signature_keys=keys), unsigned()
    wanted = chosen.digest(read([*lines, authorization(parameters(lines, WHOLE))]))
    assert wanted is not None
    assert body_refusal(wanted, hashlib.sha256(BODY).digest()) is None
    assert body_refusal(wanted, hashlib.sha256(BODY + b" ").digest()) == NOT_FOUND
    assert body_refusal(b"", hashlib.sha256(b"").digest()) == NOT_FOUND


def test_a_token_or_a_signature_suffices(tokens: str, keys: str) -> None:
    chosen, lines = guard(bearer_token_file=tokens, signature_keys=keys), unsigned()
    head = read([*lines, authorization(parameters(lines, WHOLE))])
    bearing = read([*lines, "Authorization: Bearer old/token+1~_"])
    assert chosen.refusal(head, NOW) == (None, NOW + SKEW_S) and chosen.digest(head)
    assert chosen.refusal(bearing, NOW) == (None, NEVER) and chosen.digest(bearing) is None
    assert chosen.refusal(read(lines), NOW) == (NOT_FOUND, NEVER)


def test_a_request_that_loops_is_refused(tokens: str) -> None:
    pseudonym = identity.hops(Config()).pseudonym.decode()
    refused, until = guard().refusal(request(f"via: 1.1 {pseudonym}"), 0.0)
    assert refused is not None and refused.status == 508 and until == NEVER
    assert refused.status in REASONS
    # but strangers are told nothing
    assert guard(bearer_token_file=tokens).refusal(request(f"via: 1.1 {pseudonym}"), 0.0)[0] == NOT_FOUND


@pytest.mark.parametrize(
    ("text", "line"),
    [("", 0), ("# none\n\n", 0), ("good\nnot good\n", 2), ("caf\u00e9\n", 1), ("Bearer x\n", 1)],
)
def test_a_bad_file_of_tokens(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ConfigError, match="token") as caught:
        guard(bearer_token_file=str(path))
    assert caught.value.place == (f"{path}:{line}" if line else str(path))
    assert "good" not in caught.value.message + caught.value.remedy  # a secret is not repeated


def test_a_file_of_tokens_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        guard(bearer_token_file=str(tmp_path / "missing"))
