"""The history of an instance: its last notes, and its restarts by reason.

Touches nothing; passes events to the `announce` of its constructor.
"""

from __future__ import annotations

from twofold.server.supervision.events import Announce, Event, Note

KEPT_NOTES = 8


class Incidents:
    """The last notes, and the number of restarts by reason."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce
        self.messages: list[str] = []
        self.restarts: dict[str, int] = {}  # replicas: by the reason of the end; other processes: by role
        self.changed = True  # the published status is out of date

    def announce(self, event: Event) -> None:
        """Pass the event on."""
        self.changed = True
        self._announce(event)

    def note(self, message: str) -> None:
        """Announce the message and keep it for the status of the instance."""
        self.messages.append(message)
        del self.messages[:-KEPT_NOTES]
        self.announce(Note(message))

    def count_restart(self, reason: str) -> None:
        """Count one restart for this reason."""
        self.restarts[reason] = self.restarts.get(reason, 0) + 1
        self.changed = True
