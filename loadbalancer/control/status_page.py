"""The read-only routes: the status page, its events, the state as JSON, and the metrics for Prometheus.

Touches the page's file.  The page is self-contained: it loads no other resources, and its policy
(Content-Security-Policy) allows its own script only.  It contains the first state; each later state is a
server-sent event, twice a second, rendered once for all watchers.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from twofold.loadbalancer.control.status_source import StatusSource

PAGE = Path(__file__).with_name("status.html")
PLACE = b"{/* state */}"
MAX_WATCHERS = 64
FRESH = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Watchers:
    """Serves the page and its events to at most MAX_WATCHERS browsers."""

    def __init__(self, status: StatusSource) -> None:
        self._status = status
        self._next: asyncio.Future[bytes] | None = None
        self._count = 0
        self._stopped = False

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/events", self.events),
            Route("/state", self.state),
            Route("/metrics", self.metrics),
        ]

    # ------------------------------------------------------------------ answers

    async def page(self, request: Request) -> Response:
        text, policy = template()
        headers = {**FRESH, "content-security-policy": policy, "referrer-policy": "no-referrer"}
        return Response(text.replace(PLACE, _inline(self._now())), headers=headers, media_type="text/html")

    async def state(self, request: Request) -> Response:
        return Response(orjson.dumps(self._status.state()), headers=FRESH, media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        text = self._status.exposition()
        from twofold.telemetry.prometheus import CONTENT_TYPE  # loaded by the first exposition

        return Response(text, headers={**FRESH, "content-type": CONTENT_TYPE})

    async def events(self, request: Request) -> Response:
        if self._count >= MAX_WATCHERS:
            raise HTTPException(503, f"{MAX_WATCHERS} others watch already")
        return StreamingResponse(self._stream(), headers=FRESH, media_type="text/event-stream")

    # ------------------------------------------------------------------ events

    async def _stream(self) -> AsyncIterator[bytes]:
        self._count += 1
        try:
            yield b"retry: 1000\n" + _event(self._now())
            while not self._stopped:
                if self._next is None:
                    self._next = asyncio.get_running_loop().create_future()
                yield await asyncio.shield(self._next)
        finally:
            self._count -= 1

    def _now(self) -> bytes:
        return orjson.dumps(self._status.state_with_history())

    async def run(self) -> None:
        """Send each reading to all watchers, until `stop`."""
        while not self._stopped:
            await self._status.sampled.wait()
            self._send(_event(self._now()) if self._next is not None else b"")

    def stop(self) -> None:
        self._stopped = True
        self._status.sampled.set()
        self._send(b"\n")

    def _send(self, event: bytes) -> None:
        waiting, self._next = self._next, None
        if waiting is not None and not waiting.done():
            waiting.set_result(event)


def _event(text: bytes) -> bytes:
    return b"data: " + text + b"\n\n"


def _inline(text: bytes) -> bytes:
    """Escape JSON for a script element, so that no text in it can end the element."""
    return text.replace(b"<", b"\\u003c")


@cache
def template() -> tuple[bytes, str]:
    """The page without its first state, and its policy."""
    text = PAGE.read_bytes()
    styles = re.findall(rb"<style>(.*?)</style>", text, re.DOTALL)
    scripts = re.findall(rb"<script>(.*?)</script>", text, re.DOTALL)
    policy = (
        f"default-src 'none'; style-src {_hashes(styles)}; script-src {_hashes(scripts)}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hashes(texts: list[Any]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
