"""What becomes of a request with such a head: lanes, the order of refusals, what closes the connection."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.server.front import route
from twofold.server.front.route import APPLICATION, APPLICATION_BODY, EXPRESS, REFUSED, RoutePlan, RouteRules
from twofold.server.replica import frame
from twofold.wire import request_head

RULES = RouteRules(max_body=1000, ocid="")
OCID = "ocid1.datasciencemodeldeployment.oc1.iad.xyz"


def planned(
    request: str = "POST /predict HTTP/1.1", *fields: str, rules: RouteRules = RULES, host: bool = True
) -> RoutePlan:
    lines = [request, *(["host: h"] if host else []), *fields, "", ""]
    return route.make_plan(request_head.parse_head("\r\n".join(lines).encode()), rules)


@pytest.mark.parametrize("path", ["/predict", f"/{OCID}/predict", "/predict?a=b", "/x/predict"])
def test_predict_takes_the_express_lane(path: str) -> None:
    made = planned(f"POST {path} HTTP/1.1", "content-length: 7")
    assert (made.lane, made.length, made.refusal, made.close) == (EXPRESS, 7, None, False)


@pytest.mark.parametrize(
    "path", ["/", "/health", "/predict/", "//predict", "/a/b/predict", "/predictor", "/a"]
)
def test_everything_else_goes_to_the_application(path: str) -> None:
    assert planned(f"POST {path} HTTP/1.1", "content-length: 0").lane == APPLICATION


@given(path=st.text("/abpredict", max_size=14).map("/".__add__))
@settings(derandomize=True, max_examples=500, database=None)
def test_a_predict_route_has_one_name_before_it_or_none(path: str) -> None:
    parts = path.split("/")[1:]
    expected = parts == ["predict"] or (len(parts) == 2 and bool(parts[0]) and parts[1] == "predict")
    assert route.is_predict(path) is expected


def test_only_the_configured_deployment_exists() -> None:
    rules = RouteRules(1000, OCID)
    assert planned(f"POST /{OCID}/predict HTTP/1.1", "content-length: 1", rules=rules).lane == EXPRESS
    assert planned("POST /predict HTTP/1.1", "content-length: 1", rules=rules).lane == EXPRESS
    other = planned("POST /ocid1.other/predict HTTP/1.1", "content-length: 1", rules=rules)
    assert other.refusal is not None and other.refusal.status == 404


def test_refusals_come_in_the_order_of_the_contract() -> None:
    """A request with several faults is told of the first: 404, 405, 411, 413, 415."""
    rules = RouteRules(1000, OCID)
    for missing, method, length, encoded in product((True, False), repeat=4):
        path = "/ocid1.other/predict" if missing else "/predict"
        size = {True: [], False: ["content-length: 1001"]}[length]
        made = planned(
            f"{'PUT' if method else 'POST'} {path} HTTP/1.1",
            *size, *(["content-encoding: gzip"] if encoded else []),
            rules=rules,
        )  # fmt: skip
        expected = 404 if missing else 405 if method else 411 if length else 413
        assert made.lane == REFUSED and made.refusal is not None and made.refusal.status == expected


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (["content-length: 1000"], None),
        (["content-length: 1001"], 413),
        (["content-length: 5", "content-encoding: gzip"], 415),
        (["content-length: 5", "content-encoding: Identity"], None),
        (["transfer-encoding: chunked"], 411),
        ([], 411),
        (["content-length: 0"], None),
    ],
)
def test_lengths_and_encodings(fields: list[str], status: int | None) -> None:
    refusal = planned("POST /predict HTTP/1.1", *fields).refusal
    assert (refusal.status if refusal else None) == status


def test_a_405_says_what_is_allowed() -> None:
    refusal = planned("GET /predict HTTP/1.1").refusal
    assert refusal is not None and refusal.status == 405 and refusal.headers == b"allow: POST\r\n"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([f"content-length: {APPLICATION_BODY}"], None),
        ([f"content-length: {APPLICATION_BODY + 1}"], 413),
        (["transfer-encoding: chunked"], 411),
    ],
)
def test_other_routes_take_small_bodies_of_known_length(fields: list[str], status: int | None) -> None:
    refusal = planned("POST /other HTTP/1.1", *fields).refusal
    assert (refusal.status if refusal else None) == status


@pytest.mark.parametrize(
    ("request_line", "fields", "close", "connection"),
    [
        ("POST /predict HTTP/1.1", ["content-length: 1"], False, b""),
        (
            "POST /predict HTTP/1.1",
            ["content-length: 1", "connection: close"],
            True,
            b"connection: close\r\n",
        ),
        ("POST /predict HTTP/1.0", ["content-length: 1"], True, b"connection: close\r\n"),
        (
            "POST /predict HTTP/1.0",
            ["content-length: 1", "connection: keep-alive"],
            False,
            b"connection: keep-alive\r\n",
        ),
        # refused, and nothing of a body is under way: the connection may go on
        ("GET /predict HTTP/1.1", [], False, b""),
        ("GET /predict HTTP/1.1", ["content-length: 0"], False, b""),
        # refused with a body that nobody will read
        ("PUT /predict HTTP/1.1", ["content-length: 1"], True, b"connection: close\r\n"),
        ("POST /predict HTTP/1.1", ["content-length: 1001"], True, b"connection: close\r\n"),
        ("POST /predict HTTP/1.1", ["transfer-encoding: chunked"], True, b"connection: close\r\n"),
        # without a length nobody knows whether a body follows
        ("POST /predict HTTP/1.1", [], True, b"connection: close\r\n"),
    ],
)
def test_requests_that_close_the_connection(
    request_line: str, fields: list[str], close: bool, connection: bytes
) -> None:
    made = planned(request_line, *fields)
    assert (made.close, made.connection) == (close, connection)


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("", frame.JSON),
        ("application/json", frame.JSON),
        ("Application/JSON; charset=utf-8", frame.JSON),
        ("application/vnd.api+json", frame.JSON),
        ("application/octet-stream", frame.BYTES),
        ("text/csv; header=present", frame.BYTES),
        ("application/jsonlines", frame.BYTES),
    ],
)
def test_json_is_the_default(content_type: str, kind: int) -> None:
    fields = [f"content-type: {content_type}"] if content_type else []
    assert planned("POST /predict HTTP/1.1", "content-length: 1", *fields).kind == kind


def test_the_access_log_gets_no_query() -> None:
    made = planned("POST /predict?token=secret HTTP/1.1", "content-length: 1")
    assert made.message == b"POST /predict 1.1"
