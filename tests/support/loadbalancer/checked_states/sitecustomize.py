"""Python imports this at its start when the folder is on PYTHONPATH: changes of state outside MOVES are said.

It looks at the connections and exchanges of an interpreted proxy; a test looks for ILLEGAL in its output.
"""

from __future__ import annotations

import sys
from typing import Any

from twofold.loadbalancer.proxy import downstream, exchange, upstream

ILLEGAL = "an illegal change of state"


class Checked:
    """Stands before the slot of an attribute."""

    def __init__(self, owner: type, moves: dict[int, tuple[int, ...]]) -> None:
        self.name = owner.__name__
        self.slot = owner.__dict__["state"]
        self.moves = moves

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else self.slot.__get__(instance, owner)

    def __set__(self, instance: Any, new: int) -> None:
        try:
            old = self.slot.__get__(instance, type(instance))
        except AttributeError:  # its first state
            old = new
        if new != old and new not in self.moves[old]:
            print(f"{ILLEGAL}: {self.name} from {old} to {new}", file=sys.stderr, flush=True)
        self.slot.__set__(instance, new)


def check(owner: type, moves: Any) -> None:
    owner.state = Checked(owner, moves)  # type: ignore[attr-defined]


check(downstream.Downstream, downstream.MOVES)
check(exchange.Exchange, exchange.MOVES)
check(upstream.UpstreamConnection, upstream.MOVES)
