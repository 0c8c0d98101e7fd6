"""What people and tools read about an instance: the overview, OpenAPI, and a page to try predict.

Pure: the status of an instance in, text out.  The pages are complete in themselves, they load nothing from
anywhere, and their policy (Content-Security-Policy) lets them run their own script only.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from twofold import __version__
from twofold.server.telemetry.instance_status import InstanceStatus

ROUTES = {
    "POST /predict": "one prediction; POST /{ocid}/predict is the same",
    "GET /docs": "a page to try it",
    "GET /openapi.json": "this interface as OpenAPI 3.1",
    "GET /health": "200 when predict can be served; /health/live, /health/ready, /health/startup",
    "GET /metrics": "counters and durations for Prometheus",
}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } td { padding-right: 1.5rem; vertical-align: top; }
textarea, pre { width: 100%; box-sizing: border-box; font: 14px/1.4 ui-monospace, monospace; }
pre { background: #f4f4f4; padding: .8rem; overflow: auto; min-height: 3rem; white-space: pre-wrap; }
"""

SCRIPT = """
const form = document.querySelector("form"), out = document.querySelector("pre");
form.addEventListener("submit", async event => {
  event.preventDefault();
  out.textContent = "...";
  const began = performance.now();
  try {
    const answer = await fetch("predict", {
      method: "POST", body: form.body.value, headers: {"content-type": form.kind.value}});
    const text = await answer.text();
    out.textContent = [answer.status + " in " + (performance.now() - began).toFixed(1) + " ms",
      "server-timing: " + answer.headers.get("server-timing"),
      "opc-request-id: " + answer.headers.get("opc-request-id"), "", text].join("\\n");
  } catch (error) { out.textContent = String(error); }
});
"""


@dataclass(frozen=True, slots=True)
class Page:
    html: str
    policy: str  # the Content-Security-Policy it must be sent with


def summary(status: InstanceStatus) -> dict[str, Any]:
    """What is served, for programs."""
    facts = {key: status.get(key, "") for key in ("artifact", "python", "environment", "state")}
    return {"service": "twofold", "version": __version__, **facts, "routes": ROUTES}


def about(status: InstanceStatus) -> Page:
    """What is served, for people."""
    facts = {
        "artifact": status.get("artifact", ""),
        "state": status.get("state", ""),
        "replicas": ", ".join(f"{r.get('index')}: {r.get('state')}" for r in status.get("replicas", ())),
        "Python": status.get("python", ""),
        "environment": status.get("environment", ""),
        "twofold": __version__,
    }
    routes = {
        f'<a href="{name[5:]}">{name}</a>' if name.startswith("GET") else name: text
        for name, text in ROUTES.items()
    }
    title = escape(str(status.get("artifact") or "a model"))
    body = f"<h1>{title}</h1>{_table(facts)}<h1>Routes</h1><table>"
    body += "".join(f"<tr><td>{name}</td><td>{escape(text)}</td></tr>" for name, text in routes.items())
    return _page(title, body + "</table>", "")


def docs(status: InstanceStatus) -> Page:
    """A form that calls predict and shows the answer with its times."""
    title = escape(str(status.get("artifact") or "a model"))
    sample = escape(str(status.get("sample") or "[[1, 2, 3]]"))
    body = f"""<h1>Try {title}</h1>
<form><p><label>Body<br><textarea name="body" rows="10" required>{sample}</textarea></label></p>
<p><label>Content type <select name="kind"><option>application/json</option>
<option>application/octet-stream</option></select></label> <button>POST /predict</button></p></form>
<pre aria-live="polite"></pre>
<p>The interface as <a href="openapi.json">OpenAPI</a>; what is <a href="./">served here</a>.</p>"""
    return _page(title, body, SCRIPT)


def _table(facts: Mapping[str, object]) -> str:
    rows = (f"<tr><td>{escape(name)}</td><td>{escape(str(fact))}</td></tr>" for name, fact in facts.items())
    return f"<table>{''.join(rows)}</table>"


def _page(title: str, body: str, script: str) -> Page:
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{body}"
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>"
    )
    policy = f"default-src 'none'; style-src {_hash(STYLE)}; connect-src 'self'; base-uri 'none'"
    policy += "; form-action 'none'; frame-ancestors 'none'"
    return Page(html, policy + (f"; script-src {_hash(script)}" if script else ""))


def _hash(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


COMPONENTS = {
    "schemas": {
        "Error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
    "headers": {
        "opc-request-id": {
            "description": "Three groups of 32 hexadecimal digits; yours is the first.",
            "schema": {"type": "string"},
        },
        "server-timing": {
            "description": "Milliseconds in the queue, in predict() and in encoding its result.",
            "schema": {"type": "string"},
        },
    },
}


def openapi(status: InstanceStatus, max_body: int) -> dict[str, Any]:
    """OpenAPI 3.1. The model's own schema is unknown here: any JSON goes in, any JSON comes out."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": str(status.get("artifact") or "twofold"),
            "version": __version__,
            "description": f"predict() of a model, served by twofold. Bodies have at most {max_body} bytes.",
        },
        "paths": {
            "/predict": {"post": _predict("predict")},
            "/{ocid}/predict": {
                "parameters": [
                    {"name": "ocid", "in": "path", "required": True, "schema": {"type": "string"}}
                ],
                "post": _predict("predictByOcid"),
            },
            "/health": {"get": _probe("health", "Whether predict can be served")},
            "/health/live": {"get": _probe("live", "Whether the server answers at all")},
            "/health/ready": {"get": _probe("ready", "Whether predict can be served")},
            "/health/startup": {"get": _probe("startup", "Whether the first start has finished")},
            "/metrics": {"get": _plain("metrics", "Counters and durations for Prometheus", "text/plain")},
            "/": {"get": _plain("about", "What is served", "application/json")},
        },
        "components": COMPONENTS,
    }


REFUSALS = {
    "400": "The body is not JSON, or the request is malformed",
    "404": "Another deployment's path",
    "405": "Another method than POST",
    "408": "The request did not arrive in time",
    "411": "No Content-Length",
    "413": "The body is too large",
    "415": "The body is compressed",
    "417": "An Expect other than 100-continue",
    "429": "Too many requests, says a load balancer in front; see Retry-After",
    "431": "The head is over 32 KiB or 100 fields",
    "500": "predict() failed, its replica died, or the deadline passed",
    "501": "A transfer coding other than chunked, or a method that does not exist",
    "503": "The queue is full or no replica is ready; see Retry-After",
    "505": "Another version of HTTP than 1.0 and 1.1",
}


def _predict(operation: str) -> dict[str, Any]:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in ("opc-request-id", "server-timing")}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "operationId": operation,
        "summary": "One prediction",
        "parameters": [
            {"name": "opc-request-id", "in": "header", "required": False, "schema": {"type": "string"}}
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {
            "200": {
                "description": "What predict() returned",
                "headers": headers,
                "content": {"application/json": {"schema": {}}},
            },
            **{
                status: {"description": text, "headers": headers, "content": error}
                for status, text in REFUSALS.items()
            },
        },
    }


def _probe(operation: str, question: str) -> dict[str, Any]:
    status = {"application/json": {"schema": {"type": "object"}}}
    return {
        "operationId": operation,
        "summary": question,
        "responses": {
            "200": {"description": "Yes; the status of the instance", "content": status},
            "503": {"description": "No; the status says why", "content": status},
        },
    }


def _plain(operation: str, text: str, kind: str) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {"schema": {}}}
    return {
        "operationId": operation,
        "summary": text,
        "responses": {"200": {"description": text, "content": content}},
    }
