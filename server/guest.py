"""`python -m server.guest FD`: an instance without fronts, for an application under another server.

The process that embeds us holds the other end of the socket FD: it receives the plumbing there, and
its end is our sign to stop.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from server import artifact, config, environment, supervisor
from server.errors import TwofoldError
from server.log import say


def announce(event: str, **facts: Any) -> None:
    if event in ("note", "ready"):
        say("info", facts.get("message") or f"{facts['replicas']} replicas ready in {facts['seconds']:.2f} s")


def main() -> int:
    guest = socket.socket(fileno=int(sys.argv[1]))
    settings = config.from_json(os.environ.pop("TWOFOLD_GUEST_CONFIG"))
    try:
        opened = artifact.opened(settings.artifact, settings.cache_folder(), settings.replicas.sample)
        prepared = environment.prepare(opened.runtime, settings.environment, lambda what, done, total: None)
        return int(supervisor.run(settings, prepared, opened, announce, guest))
    except TwofoldError as error:
        say("error", str(error))
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
