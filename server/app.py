"""`uvicorn twofold.server.app:app`: the instance as an application inside another ASGI server.

Importing it does nothing; the application is made when the server asks for it.
"""

from __future__ import annotations

from starlette.applications import Starlette

from twofold.server.front import api


def __getattr__(name: str) -> Starlette:
    """PEP 562. Raises AttributeError for any name but `app`."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return api.embedded()
