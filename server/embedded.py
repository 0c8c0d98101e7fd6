"""`python -m server.embedder FD`: an instance without fronts, for an application under another server.

The process that embeds us holds the other end of the socket FD: it receives the channels there, and
its end is our sign to stop.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from twofold.errors import ConfigError, TwofoldError
from twofold.logs.console import say
from twofold.server import config
from twofold.server.artifact import artifact
from twofold.server.environment import environment
from twofold.server.machine.capacity import many
from twofold.server.supervision import supervisor
from twofold.server.validation import check


def announce(event: str, **facts: Any) -> None:
    if event == "note":
        say("info", facts["message"])
    elif event == "ready":
        say("info", f"{many(facts['replicas'], 'replica')} ready in {facts['seconds']:.2f} s")
    elif facts.get("state") == "dead":
        say("warning", f"replica {facts['index']} dead: {facts['reason']}")


def main() -> int:
    embedder = socket.socket(fileno=int(sys.argv[1]))
    settings = config.CATALOGUE.from_json(os.environ.pop("TWOFOLD_EMBEDDER_CONFIG"))
    try:
        if not settings.artifact:
            raise ConfigError(
                "no artifact is named", "set it to a folder or zip with score.py", "TWOFOLD_ARTIFACT"
            )
        opened = artifact.opened(settings.artifact, settings.cache_folder(), settings.replicas.sample)
        check.require(opened, lambda message: announce("note", message=message))
        prepared = environment.prepare(opened.runtime, settings.environment, lambda what, done, total: None)
        return int(supervisor.run(settings, prepared, opened, announce, embedder))
    except TwofoldError as error:
        say("error", str(error))
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
