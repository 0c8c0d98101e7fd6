"""The HTTP surface over a pretended instance: in process, over our own ASGI layer, and under uvicorn."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from tests.support.eventually import eventually, never
from twofold.server.front import asgi
from twofold.server.front.api import create_app
from twofold.server.front.route import RouteRules
from twofold.server.replica import frame
from twofold.server.telemetry import metrics
from twofold.server.telemetry.instance_status import InstanceStatus
from twofold.telemetry.prometheus import CONTENT_TYPE
from twofold.wire import request_head
from twofold.wire.refusal import error_body

ID = re.compile(r"[0-9A-F]{32}/[0-9A-F]{32}/[0-9A-F]{32}")
GZIP = {"content-encoding": "gzip"}
RULES = RouteRules(max_body=1000, ocid="ocid1.md")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass
class Pretended:
    """A backend that answers what it was asked."""

    state: str = "ready"
    asked: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    hold: bool = False
    cancelled: bool = False

    def instance_status(self) -> InstanceStatus:
        return {
            "state": self.state, "artifact": "iris <b>", "python": "3.11", "environment": "default",
            "replicas": [
                {"index": 0, "pid": 0, "state": "backoff", "restarts": 1, "reason": "out of memory",
                 "load_seconds": 0.1, "memory_mb": 0.0},
            ],
            "restarts": {},
        }  # fmt: skip

    def metrics_snapshot(self) -> metrics.Snapshot:
        return metrics.Snapshot((7,) + (0,) * (metrics.CELLS - 1), (7,), 3)

    async def predict(self, body: bytes, kind: int, request_id: bytes) -> Answer:
        self.asked.append((body, kind, request_id))
        if self.hold:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        fields = (
            (b"content-type", b"application/json"),
            (b"opc-request-id", b"mine"),
            (b"server-timing", b"queue;dur=1, predict;dur=2, encode;dur=3"),
        )
        if body == b"down":
            refused = error_body("ServiceUnavailable", "the queue is full")
            return Answer(503, refused, (*fields, (b"retry-after", b"4")))
        return Answer(200, b'{"echo":true}', fields)


@pytest.fixture
def backend() -> Pretended:
    return Pretended()


class Client:
    """Calls the application in this process."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def exchange() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://instance") as client:
                return await client.request(method, path, **options)

        return asyncio.run(exchange())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


async def in_chunks() -> AsyncIterator[bytes]:
    yield b"{}"


@pytest.fixture
def client(backend: Pretended) -> Client:
    return Client(create_app(backend, RULES))


def test_predict_passes_body_and_answer_on(client: Client, backend: Pretended) -> None:
    answer = client.post("/predict", json=[1], headers={"opc-request-id": "ABC/other/groups"})
    assert (answer.status_code, answer.content) == (200, b'{"echo":true}')
    assert answer.headers["opc-request-id"] == "mine", "the backend's id, which is also in the logs"
    assert answer.headers["server-timing"].startswith("queue;dur=1")
    assert answer.headers["x-content-type-options"] == "nosniff"
    client.post("/ocid1.md/predict", content=b"raw", headers={"content-type": "application/octet-stream"})
    client.post("/predict", content=b"x", headers={"opc-request-id": "<script>"})
    assert backend.asked == [
        (b"[1]", frame.JSON, b"ABC"),
        (b"raw", frame.BYTES, b""),
        (b"x", frame.JSON, b""),
    ]


def test_errors_of_the_backend_are_passed_on(client: Client) -> None:
    answer = client.post("/predict", content=b"down")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "4")
    assert answer.json() == {"code": "ServiceUnavailable", "message": "the queue is full"}


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nothing", {}, 404, "NotAuthorizedOrNotFound"),
        ("POST", "/another/predict", {"content": b"{}"}, 404, "NotAuthorizedOrNotFound"),
        ("GET", "/health/unknown", {}, 404, "NotAuthorizedOrNotFound"),
        ("GET", "/predict", {}, 405, "MethodNotAllowed"),
        ("PUT", "/ocid1.md/predict", {"content": b"{}"}, 405, "MethodNotAllowed"),
        ("POST", "/health", {"content": b"{}"}, 405, "MethodNotAllowed"),
        ("POST", "/predict", {"content": in_chunks()}, 411, "LengthRequired"),
        ("POST", "/predict", {"content": b"x" * 1001}, 413, "PayloadTooLarge"),
        ("POST", "/predict", {"content": b"x", "headers": GZIP}, 415, "UnsupportedMediaType"),
    ],
)  # fmt: skip
def test_error_responses_have_the_form_of_the_contract(
    client: Client, backend: Pretended, method: str, path: str, options: Any, status: int, code: str
) -> None:
    answer = client.request(method, path, **options)
    assert answer.status_code == status
    assert set(answer.json()) == {"code", "message"}
    assert answer.json()["code"] == code
    assert ID.fullmatch(answer.headers["opc-request-id"])
    assert answer.headers["server-timing"] == "queue;dur=0, predict;dur=0, encode;dur=0"
    assert answer.headers["content-type"] == "application/json"
    if status == 405:
        assert ("POST" if "predict" in path else "GET") in answer.headers["allow"]
    assert backend.asked == []


@pytest.mark.parametrize(
    ("state", "ready", "startup"),
    [
        ("starting", 503, 503), ("ready", 200, 200), ("degraded", 200, 200),
        ("failed", 503, 503), ("draining", 503, 200),
    ],
)  # fmt: skip
def test_health_is_the_real_state(
    client: Client, backend: Pretended, state: str, ready: int, startup: int
) -> None:
    backend.state = state
    answer = client.get("/health")
    assert answer.status_code == ready == client.get("/health/ready").status_code
    assert client.get("/health/startup").status_code == startup
    assert client.get("/health/live").status_code == 200
    assert answer.json()["state"] == state
    assert answer.json()["replicas"][0]["reason"] == "out of memory"
    assert ID.fullmatch(answer.headers["opc-request-id"])


def test_metrics_are_for_prometheus(client: Client) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["twofold_requests"].samples[0].value == 7
    assert families["twofold_queue_depth"].samples[0].value == 3


def test_the_root_page_is_json_or_html(client: Client) -> None:
    assert client.get("/").json()["artifact"] == "iris <b>"
    page = client.get("/", headers={"accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "iris &lt;b&gt;" in page.text and "<b>" not in page.text
    assert client.request("HEAD", "/").content == b""


def test_the_docs_page_needs_nothing_from_anywhere(client: Client) -> None:
    page = client.get("/docs")
    assert not re.search(r"https?://|//[a-z]", page.text), "no other host is asked for anything"
    policy = page.headers["content-security-policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_bug_is_a_500_in_the_form_of_the_contract(
    backend: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "instance_status", lambda: 1 / 0)

    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(backend, RULES), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://instance") as client:
            return await client.get("/health")

    answer = asyncio.run(exchange())
    assert answer.status_code == 500
    assert answer.json() == {
        "code": "InternalServerError",
        "message": "the server failed; its log says why",
    }


def test_openapi_describes_what_is_there(client: Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method in set(operations) - {"parameters"}:
            status = client.request(method, path.replace("{ocid}", "ocid1.md"), content=b"1").status_code
            assert str(status) in operations[method]["responses"]
    references = re.findall(r"#/components/(\w+)/([\w-]+)", json.dumps(document))
    assert references
    for kind, name in references:
        assert name in document["components"][kind]
    operations = re.findall(r'"operationId": "(\w+)"', json.dumps(document))
    assert len(operations) == len(set(operations))


def test_in_a_front_the_request_id_is_that_of_the_connection(backend: Pretended) -> None:
    """Over the ASGI layer that a front uses."""
    app = create_app(backend, RULES)
    head = request_head.parse_head(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
    writes: list[bytes] = []
    outcome = asyncio.run(asgi.serve(app, asgi.AsgiRequest(head, b"", b"A/B/C"), writes.append))
    assert outcome.status == 200 and not outcome.close
    assert len(writes) == 1 and b"\r\nopc-request-id: A/B/C\r\n" in writes[0]
    assert writes[0].count(b"content-length") == 1


@dataclass
class Served:
    backend: Pretended
    port: int

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10, trust_env=False)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """The application under uvicorn, on a port of loopback."""
    pretended = Pretended()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(create_app(pretended, RULES), log_level="warning", lifespan="on", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        eventually(lambda: server.started or not thread.is_alive(), "uvicorn's start")
        assert thread.is_alive()
        yield Served(pretended, listener.getsockname()[1])
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def test_under_uvicorn(served: Served) -> None:
    with served.client() as client:
        answer = client.post("/ocid1.md/predict", json={"a": 1}, headers={"opc-request-id": "ABC"})
        assert (answer.status_code, answer.json()) == (200, {"echo": True})
        assert served.backend.asked[-1] == (b'{"a":1}', frame.JSON, b"ABC")
        assert answer.headers.get_list("content-type") == ["application/json"]
        assert answer.headers.get_list("content-length") == ["13"]
        chunked = client.post("/predict", content=iter([b"{}"]))
        assert (chunked.status_code, chunked.json()["code"]) == (411, "LengthRequired")
        assert client.post("/predict", content=b"x" * 1001).status_code == 413
        assert client.get("/health").status_code == 200
        assert "twofold_requests_total" in client.get("/metrics").text
        assert ID.fullmatch(client.get("/nothing").headers["opc-request-id"])


def test_a_client_that_leaves_cancels_its_request(served: Served) -> None:
    served.backend.hold, served.backend.cancelled = True, False
    try:
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nhold")
            asked = served.backend.asked
            eventually(lambda: asked and asked[-1][0] == b"hold", "the request")
        eventually(lambda: served.backend.cancelled, "its end")
    finally:
        served.backend.hold = False


def test_an_incomplete_body_does_not_reach_the_backend(served: Served) -> None:
    before = len(served.backend.asked)
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: 400\r\n\r\nhalf")
        time.sleep(0.1)
    with served.client() as client:
        assert client.get("/health/live").status_code == 200
    never(lambda: len(served.backend.asked) != before, "a request without its whole body", 0.1)


def test_importing_does_nothing_and_app_is_made_when_asked_for() -> None:
    script = """
import sys
import twofold.server.app
assert "twofold.server.front.embedding" not in sys.modules and "prometheus_client" not in sys.modules
assert "twofold.server.config" not in sys.modules
assert type(twofold.server.app.app).__name__ == "Starlette"
try:
    twofold.server.app.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3], check=True, timeout=30)
