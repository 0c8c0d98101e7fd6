"""How many clients there is room for, and who leaves when there is none.

Touches the clients' connections and the limit of descriptors.  A descriptor that a client takes is
missing for the instance that is to answer it, so some are kept back; whoever has been quiet for a
while makes room for a newcomer, and where nobody has, the newcomer is sent away.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from twofold.loadbalancer.proxy.client import IDLE

if TYPE_CHECKING:
    from twofold.loadbalancer.proxy.client import Client

QUIET = 1.0  # seconds without a request
KEPT_BACK = 2048  # descriptors at most for instances and for the proxy itself, or a quarter of all


class ConnectionLimit:
    def __init__(self, most: int) -> None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most = min(most, descriptors - min(KEPT_BACK, descriptors // 4))
        self.clients: set[Client] = set()
        self._quiet: list[Client] = []  # the longest last
        self._looked = 0.0

    def has_room(self, now: float) -> bool:
        """For the client that joined last; perhaps another one leaves for it."""
        return len(self.clients) <= self.most or self._dismiss(now)

    def _dismiss(self, now: float) -> bool:
        if not self._quiet and now != self._looked:  # once per tick: there may be many to look at
            self._looked = now
            self._quiet = [client for client in self.clients if _is_quiet(client, now)]
            self._quiet.sort(key=lambda client: client.since, reverse=True)
        while self._quiet:
            client = self._quiet.pop()
            if _is_quiet(client, now):
                client.transport.close()
                return True
        return False

    def forget(self) -> None:
        """Every second: nobody who has left is to be remembered for longer."""
        self._quiet.clear()


def _is_quiet(client: Client, now: float) -> bool:
    return client.state == IDLE and now - client.since >= QUIET and not client.transport.is_closing()
