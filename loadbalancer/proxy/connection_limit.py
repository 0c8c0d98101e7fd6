"""How many clients there is room for, and which connection is closed when there is none.

Touches the clients' connections, their counters, and the limit of descriptors.  A descriptor that a client
takes is missing for the instance that is to answer it, so some are kept back.  A connection that has been
quiet for a while makes room for a new one; where none has, the new one is refused.
"""

from __future__ import annotations

import resource

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.proxy.downstream import IDLE, Downstream

QUIET_S = 1.0  # without a request
KEPT_BACK = 2048  # descriptors at most for instances and for the proxy itself, or a quarter of all


class ConnectionLimit:
    """`clients`: those that are connected."""

    def __init__(self, most: int, cells: list[int]) -> None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most = min(most, descriptors - min(KEPT_BACK, descriptors // 4))
        self.clients: set[Downstream] = set()
        self._cells = cells
        self._quiet: list[Downstream] = []  # ordered; the one that has been quiet for longest is the last
        self._looked_s = 0.0

    def joined(self, client: Downstream) -> None:
        self.clients.add(client)
        self._cells[shared_memory.ACCEPTED] += 1
        self._cells[shared_memory.OPEN_CONNECTIONS] += 1

    def left(self, client: Downstream) -> None:
        self.clients.discard(client)
        self._cells[shared_memory.OPEN_CONNECTIONS] -= 1

    def has_room(self, now_s: float) -> bool:
        """For the client that joined last; perhaps a quiet connection is closed for it."""
        return len(self.clients) <= self.most or self._close_quiet(now_s)

    def _close_quiet(self, now_s: float) -> bool:
        if not self._quiet and now_s != self._looked_s:  # once per tick: there may be many to look at
            self._looked_s = now_s
            self._quiet = [client for client in self.clients if _is_quiet(client, now_s)]
            self._quiet.sort(key=lambda client: client.since_s, reverse=True)
        while self._quiet:
            client = self._quiet.pop()
            if _is_quiet(client, now_s):
                client.transport.close()
                return True
        return False

    def forget(self) -> None:
        """Every second: closed connections are not to be remembered for longer."""
        self._quiet.clear()


def _is_quiet(client: Downstream, now_s: float) -> bool:
    return client.state == IDLE and now_s - client.since_s >= QUIET_S and not client.transport.is_closing()
