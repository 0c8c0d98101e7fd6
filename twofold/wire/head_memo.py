"""What was made of a request's head, remembered: machine clients repeat their heads byte for byte. Pure."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

MAX_PLANS: Final = 1024
MAX_HEAD: Final = 2048  # bytes; longer heads are parsed each time

Plan = TypeVar("Plan")


class HeadMemo(Generic[Plan]):
    """Plans by the bytes of the head. `plans` is looked up by callers themselves: once a request."""

    __slots__ = ("plans",)

    def __init__(self) -> None:
        self.plans: dict[bytes, Plan] = {}

    def put(self, raw: bytes, plan: Plan) -> None:
        if len(raw) <= MAX_HEAD:
            if len(self.plans) >= MAX_PLANS:
                self.plans.clear()  # a client that varies its heads gains nothing from any policy
            self.plans[raw] = plan
