"""Every request of the corpus against a running server: the promised status or a close, then still alive.

`echo_server` serves examples/echo and has .host and .port.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.http1_corpus import ANY, Case, cases
from tests.support.wire_client import Closed, Response, WireClient

GOOD = (
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 9\r\nConnection: close\r\n\r\n[1, 2, 3]"
)
IN_TIME = 2.0  # seconds
ALL_BYTES = 2048  # a longer request is cut into about as many segments

pace = pytest.mark.parametrize("slowly", [False, True], ids=["whole", "bytes"])


def connect(server: Any) -> WireClient:
    return WireClient(server.host, server.port, timeout=IN_TIME)


def send(client: WireClient, data: bytes, slowly: bool, until_answered: bool = True) -> None:
    if slowly:
        client.send_slowly(data, 1 + len(data) // ALL_BYTES, until_answered)
    else:
        client.send(data)


def check_error(response: Response) -> None:
    """A refusal is JSON of a code and a message and tells nothing about the server's insides."""
    assert response.field("content-type") == "application/json"
    error = json.loads(response.body)
    assert error.keys() == {"code", "message"}
    assert error["code"].isalnum()
    assert error["message"]
    assert b"Traceback" not in response.body
    assert b'File "' not in response.body


def check_answer(response: Response, expected: int | str) -> None:
    if expected == ANY:
        assert response.status < 500
    else:
        assert response.status == expected
    assert response.field("opc-request-id")
    if response.status >= 400 and response.body:
        check_error(response)
    assert set(response.interim) <= {100}


def check_alive(server: Any) -> None:
    with connect(server) as client:
        response = client.request(GOOD)
        assert response.status == 200
        json.loads(response.body)
        assert client.closes(IN_TIME)


@pace
@pytest.mark.parametrize("case", cases("valid"), ids=str)
def test_valid_case(echo_server: Any, case: Case, slowly: bool) -> None:
    method = case.head.get("method", "GET")
    with connect(echo_server) as client:
        send(client, case.data, slowly, until_answered=False)
        for expected in case.answers:
            check_answer(client.read_response(method), expected)
        if case.closes:
            assert client.closes(IN_TIME)
        else:  # nothing was left over that would spoil the next request
            assert client.request(GOOD).status == 200
            assert client.closes(IN_TIME)
    check_alive(echo_server)


@pace
@pytest.mark.parametrize("case", [case for case in cases("invalid") if not case.truncated], ids=str)
def test_invalid_case(echo_server: Any, case: Case, slowly: bool) -> None:
    with connect(echo_server) as client:
        send(client, case.data, slowly, until_answered=len(case.answers) < 2)
        for expected in case.answers:
            check_answer(client.read_response(), expected)
        assert client.closes(IN_TIME)
    check_alive(echo_server)


@pace
@pytest.mark.parametrize("case", [case for case in cases("invalid") if case.truncated], ids=str)
def test_truncated_case(echo_server: Any, case: Case, slowly: bool) -> None:
    """The client has left: a close is answer enough, a refusal is allowed, a result is not."""
    with connect(echo_server) as client:
        send(client, case.data, slowly)
        client.half_close()
        try:
            response = client.read_response()
        except Closed as closed:
            assert closed.received == b""
        else:
            assert response.status in (400, 408)
            check_error(response)
        assert client.closes(IN_TIME)
    check_alive(echo_server)


def test_an_idle_connection_is_not_disturbed(echo_server: Any) -> None:
    """A connection that was open before all the bad ones still gets its own answer."""
    with connect(echo_server) as neighbour:
        half = len(GOOD) - 4
        neighbour.send(GOOD[:half])
        for case in cases("invalid")[::8]:
            with connect(echo_server) as client:
                client.send_slowly(case.data, 512)
        neighbour.send(GOOD[half:])
        assert neighbour.read_response().status == 200
