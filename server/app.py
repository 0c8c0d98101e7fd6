"""`uvicorn twofold.server.app:app`: the instance as an application inside another ASGI server.

Touches nothing when imported; the application is made when its name is first read.
"""

from __future__ import annotations

from starlette.applications import Starlette

from twofold.server.front import api


def __getattr__(name: str) -> Starlette:
    """Make the application (PEP 562). Raises AttributeError for any name but `app`."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return api.embedded()
