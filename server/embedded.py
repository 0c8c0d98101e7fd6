"""`python -m twofold.server.embedded FD`: an instance without fronts, for another server's application.

Touches the socket FD.  The embedding process has the other end of the socket and receives the channels there.
The instance stops when that process closes its end.
"""

from __future__ import annotations

import os
import socket
import sys

from twofold.errors import ConfigError, TwofoldError
from twofold.logs.console import say
from twofold.server import config
from twofold.server.artifact import artifact
from twofold.server.environment import environment
from twofold.server.machine.capacity import many
from twofold.server.supervision import supervisor
from twofold.server.supervision.events import Event, InstanceReady, Note, ReplicaChanged
from twofold.server.validation import check


def announce(event: Event) -> None:
    """Write the events that concern the operator to the operational log."""
    if isinstance(event, Note):
        say("info", event.message)
    elif isinstance(event, InstanceReady):
        say("info", f"{many(event.replicas, 'replica')} ready in {event.start_s:.2f} s")
    elif isinstance(event, ReplicaChanged) and event.state == "dead":
        say("warning", f"replica {event.index} dead: {event.reason}")


def main() -> int:
    """Serve until the embedding process ends. Returns the exit code."""
    embedder = socket.socket(fileno=int(sys.argv[1]))
    settings = config.CATALOGUE.from_json(os.environ.pop("TWOFOLD_EMBEDDER_CONFIG"))
    try:
        if not settings.artifact:
            raise ConfigError(
                "no artifact is named", "set it to a folder or zip with score.py", "TWOFOLD_ARTIFACT"
            )
        opened = artifact.opened(settings.artifact, settings.cache_folder(), settings.replicas.sample)
        check.require(opened, lambda message: announce(Note(message)))
        prepared = environment.prepare(opened.runtime, settings.environment, lambda what, done, total: None)
        return int(supervisor.run(settings, prepared, opened, announce, embedder))
    except TwofoldError as error:
        say("error", str(error))
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
