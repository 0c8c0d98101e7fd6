"""Plans made from request heads, remembered by the head's bytes: machine clients repeat them. Pure."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

MAX_PLANS: Final = 1024
MAX_HEAD: Final = 2048  # bytes; longer heads are parsed each time

Plan = TypeVar("Plan")


class HeadMemo(Generic[Plan]):
    """Bounded in number and in size. Callers look into `plans` themselves, which spares a call."""

    __slots__ = ("plans",)

    def __init__(self) -> None:
        self.plans: dict[bytes, Plan] = {}

    def put(self, raw: bytes, plan: Plan) -> None:
        if len(raw) <= MAX_HEAD:
            if len(self.plans) >= MAX_PLANS:
                self.plans.clear()  # for a client that varies its heads no policy is better
            self.plans[raw] = plan
