"""What has happened to an instance: the last notes, and restarts by reason.

Touches nothing: events go to the `announce` that it is given.
"""

from __future__ import annotations

from twofold.server.supervision.events import Announce, Event, Note

KEPT_NOTES = 8


class Incidents:
    def __init__(self, announce: Announce) -> None:
        self._announce = announce
        self.messages: list[str] = []
        self.restarts: dict[str, int] = {}  # of replicas by the reason of the end, of other processes by role
        self.changed = True  # what is shown of the instance is out of date

    def announce(self, event: Event) -> None:
        self.changed = True
        self._announce(event)

    def note(self, message: str) -> None:
        """Announce the message, and keep it for the status of the instance."""
        self.messages.append(message)
        del self.messages[:-KEPT_NOTES]
        self.announce(Note(message))

    def count_restart(self, reason: str) -> None:
        self.restarts[reason] = self.restarts.get(reason, 0) + 1
        self.changed = True
