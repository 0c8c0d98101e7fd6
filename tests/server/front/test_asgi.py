"""The bytes that an ASGI application's messages become, and what breaks when it breaks its word."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.server.front import asgi
from twofold.wire import request_head

Event = dict[str, Any]


def call(
    request: bytes = b"GET /x?a=1 HTTP/1.1\r\nHost: h\r\n\r\n", body: bytes = b"", **more: Any
) -> asgi.AsgiRequest:
    return asgi.AsgiRequest(request_head.parse_head(request), body, b"A/B/C", **more)


def app_of(*events: Event) -> asgi.Application:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for event in events:
            await send(event)

    return app


def start(status: int = 200, **headers: str) -> Event:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": fields}


def body(part: bytes = b"", more: bool = False) -> Event:
    return {"type": "http.response.body", "body": part, "more_body": more}


def run(app: asgi.Application, made: asgi.AsgiRequest) -> tuple[list[bytes], asgi.AsgiOutcome]:
    writes: list[bytes] = []
    outcome = asyncio.run(asgi.serve(app, made, writes.append))
    assert outcome.sent == sum(map(len, writes))
    return writes, outcome


def read(writes: list[bytes], method: str = "GET", version: str = "1.1") -> tuple[h11.Response, bytes]:
    """What an independent client makes of it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "h")], http_version=version))
    client.send(h11.EndOfMessage())
    for data in writes:
        client.receive_data(data)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    received = b""
    while True:
        event = client.next_event()
        if isinstance(event, h11.Data):
            received += bytes(event.data)
        elif event is h11.NEED_DATA and client.their_http_version:
            client.receive_data(b"")
        else:
            assert isinstance(event, h11.EndOfMessage)
            return response, received


def test_a_small_answer_is_one_write() -> None:
    writes, outcome = run(app_of(start(content_type="text/plain"), body(b"hello")), call())
    assert len(writes) == 1
    head, _, rest = writes[0].partition(b"\r\n\r\n")
    assert rest == b"hello"
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    for field in (b"content-length: 5", b"content-type: text/plain", b"server: twofold", b"date: "):
        assert b"\r\n" + field in head
    assert (outcome.status, outcome.close) == (200, False)


def test_a_streamed_answer_is_chunked_on_1_1() -> None:
    writes, outcome = run(
        app_of(start(), body(b"one", True), body(b"", True), body(b"two", True), body()), call()
    )
    assert len(writes) == 3, "the head leaves with the first chunk, nothing is written for an empty one"
    response, received = read(writes)
    assert dict(response.headers)[b"transfer-encoding"] == b"chunked"
    assert received == b"onetwo"
    assert not outcome.close


def test_a_streamed_answer_ends_with_the_connection_on_1_0() -> None:
    made = call(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    writes, outcome = run(app_of(start(), body(b"one", True), body(b"two")), made)
    assert outcome.close
    assert b"chunked" not in writes[0] and b"connection: close\r\n" in writes[0]
    assert b"".join(writes).endswith(b"\r\n\r\nonetwo")


def test_keep_alive_is_announced_on_1_0() -> None:
    writes, outcome = run(
        app_of(start(), body(b"x")), call(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    )
    assert not outcome.close
    assert b"\r\nconnection: keep-alive\r\n" in writes[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_head_has_the_fields_and_no_body(streamed: bool) -> None:
    made = call(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    events = [body(b"one", True), body(b"two")] if streamed else [body(b"onetwo")]
    writes, outcome = run(app_of(start(), *events), made)
    response, received = read(writes, "HEAD")
    fields = dict(response.headers)
    assert received == b""
    assert fields.get(b"transfer-encoding") == b"chunked" if streamed else fields[b"content-length"] == b"6"
    assert not outcome.close
    assert b"".join(writes).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(status: int) -> None:
    writes, outcome = run(app_of(start(status), body(b"not allowed here")), call())
    response, received = read(writes)
    assert (response.status_code, received, outcome.close) == (status, b"", False)
    if status == 204:
        assert b"content-length" not in dict(response.headers)


def test_the_scope_has_the_fields_of_the_request() -> None:
    seen: Event = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope, message=await receive())
        await send(start())
        await send(body())
        assert await receive() == {"type": "http.disconnect"}

    raw = b"POST /a%20b?q=%20 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nX-Y: z\r\n\r\n"
    run(app, call(raw, b"hi", client=("1.2.3.4", 5), server=("h", 80)))
    assert (seen["method"], seen["path"], seen["raw_path"], seen["query_string"]) == (
        "POST", "/a b", b"/a%20b", b"q=%20",
    )  # fmt: skip
    assert (b"x-y", b"z") in seen["headers"]
    assert seen["message"] == {"type": "http.request", "body": b"hi", "more_body": False}
    assert seen["client"] == ("1.2.3.4", 5)
    assert seen["extensions"]["twofold"]["request_id"] == b"A/B/C"
    run(app, call(b"GET http://h/a%20b HTTP/1.1\r\nHost: h\r\n\r\n"))
    assert seen["raw_path"] == b"/a%20b"


async def raises(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("secret\nof two lines")


async def silent(scope: Any, receive: Any, send: Any) -> None:
    return None


@pytest.mark.parametrize(
    "app",
    [
        raises,
        silent,
        app_of(body(b"x")),
        app_of(start(99), body(b"x")),
        app_of(start(x="a\r\nset-cookie: b"), body(b"x")),
        app_of({"type": "http.response.start", "status": 200, "headers": [(b"a b", b"c")]}, body(b"x")),
        app_of(start(content_length="7"), body(b"short")),
        app_of(start(204), start(200)),
    ],
)  # fmt: skip
def test_a_failure_before_the_first_byte_is_a_500(
    app: asgi.Application, capfd: pytest.CaptureFixture[str]
) -> None:
    writes, outcome = run(app, call())
    response, received = read(writes)
    assert (response.status_code, outcome.status, outcome.close) == (500, 500, True)
    assert json.loads(received)["code"] == "InternalServerError"
    fields = dict(response.headers)
    assert fields[b"opc-request-id"] == b"A/B/C"
    assert b"predict;dur=" in fields[b"server-timing"]
    assert b"secret" not in received and b"set-cookie" not in b"".join(writes)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "GET /x: " in said


@pytest.mark.parametrize(
    ("events", "sent"),
    [
        ([start(), body(b"one", True)], b"3\r\none\r\n"),
        ([start(content_length="9"), body(b"one", True), body(b"two")], b"one"),
        ([start(content_length="3"), body(b"one", True), body(b"two")], b"one"),
    ],
)
def test_a_failure_later_ends_the_connection(events: list[Event], sent: bytes) -> None:
    writes, outcome = run(app_of(*events), call())
    assert outcome.close
    assert b"".join(writes).partition(b"\r\n\r\n")[2] == sent, "nothing that looks like a whole answer"


def test_events_after_a_complete_response_are_ignored() -> None:
    writes, outcome = run(app_of(start(), body(b"whole"), body(b"more")), call())
    assert (outcome.status, outcome.close) == (200, False)
    assert writes[0].endswith(b"whole") and len(writes) == 1


@pytest.mark.parametrize("source", ["request", "answer", "server"])
def test_connection_close_is_honoured_from_every_side(source: str) -> None:
    request = b"Connection: close\r\n" if source == "request" else b""
    made = call(b"GET / HTTP/1.1\r\nHost: h\r\n" + request + b"\r\n", close=source == "server")
    fields: dict[str, Any] = {"connection": "close"} if source == "answer" else {}
    writes, outcome = run(app_of(start(**fields), body(b"x")), made)
    assert outcome.close
    assert writes[0].lower().count(b"connection: close\r\n") == 1


def test_production_waits_for_the_client() -> None:
    async def scenario() -> list[str]:
        order: list[str] = []

        async def drained() -> None:
            order.append("drained")

        def write(data: bytes) -> None:
            order.append("write")

        await asgi.serve(app_of(start(), body(b"a", True), body(b"b")), call(), write, drained)
        return order

    assert asyncio.run(scenario()) == ["write", "drained", "write", "drained"]


def test_cancellation_passes_through() -> None:
    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    async def scenario() -> list[bytes]:
        writes: list[bytes] = []
        task = asyncio.create_task(asgi.serve(hangs, call(), writes.append))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return writes

    assert asyncio.run(scenario()) == []


@given(
    parts=st.lists(st.binary(max_size=50), min_size=1, max_size=6),
    sized=st.booleans(),
    method=st.sampled_from(["GET", "HEAD"]),
)
def test_any_client_reads_what_the_application_sent(parts: list[bytes], sized: bool, method: str) -> None:
    whole = b"".join(parts)
    fields: dict[str, Any] = {"content_length": str(len(whole))} if sized else {}
    events = [body(part, index < len(parts) - 1) for index, part in enumerate(parts)]
    made = call(method.encode() + b" / HTTP/1.1\r\nHost: h\r\n\r\n")
    writes, outcome = run(app_of(start(**fields), *events), made)
    _, received = read(writes, method)
    assert received == (b"" if method == "HEAD" else whole)
    assert not outcome.close
