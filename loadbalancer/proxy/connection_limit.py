"""The limit of client connections, and the choice of a connection to close when it is reached.

Touches the clients' connections, their counters, and reads the limit of descriptors.  KEPT_BACK descriptors
are reserved for upstream connections.  At the limit, the connection that has been idle longest, and for at
least QUIET_S, is closed for a new one; if there is none, the new one is refused.
"""

from __future__ import annotations

import resource

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.proxy.downstream import IDLE, Downstream

QUIET_S = 1.0  # without a request
KEPT_BACK = 2048  # descriptors for instances and the proxy itself, but at most a quarter of all


class ConnectionLimit:
    """`clients`: all connected clients; `most`: their limit."""

    def __init__(self, most: int, cells: list[int]) -> None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most = min(most, descriptors - min(KEPT_BACK, descriptors // 4))
        self.clients: set[Downstream] = set()
        self._cells = cells
        self._quiet: list[Downstream] = []  # candidates to close; the one that is idle longest is last
        self._searched_s = 0.0  # when `_quiet` was last filled

    def joined(self, client: Downstream) -> None:
        self.clients.add(client)
        self._cells[shared_memory.ACCEPTED] += 1
        self._cells[shared_memory.OPEN_CONNECTIONS] += 1

    def left(self, client: Downstream) -> None:
        self.clients.discard(client)
        self._cells[shared_memory.OPEN_CONNECTIONS] -= 1

    def has_room(self, now_s: float) -> bool:
        """Whether the client that joined last fits; may close an idle connection for it."""
        return len(self.clients) <= self.most or self._close_quiet(now_s)

    def _close_quiet(self, now_s: float) -> bool:
        if not self._quiet and now_s != self._searched_s:  # once per tick: the search is linear
            self._searched_s = now_s
            self._quiet = [client for client in self.clients if _is_quiet(client, now_s)]
            self._quiet.sort(key=lambda client: client.since_s, reverse=True)
        while self._quiet:
            client = self._quiet.pop()
            if _is_quiet(client, now_s):
                client.transport.close()
                return True
        return False

    def forget(self) -> None:
        """Every second: drop the candidates, so that closed connections are freed."""
        self._quiet.clear()


def _is_quiet(client: Downstream, now_s: float) -> bool:
    return client.state == IDLE and now_s - client.since_s >= QUIET_S and not client.transport.is_closing()
