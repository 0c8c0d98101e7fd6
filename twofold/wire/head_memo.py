"""A cache of plans by the bytes of request heads, which machine clients repeat. Pure."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

MAX_PLANS: Final = 1024
MAX_HEAD: Final = 2048  # bytes; longer heads are parsed each time

Plan = TypeVar("Plan")


class HeadMemo(Generic[Plan]):
    """At most MAX_PLANS plans, of heads up to MAX_HEAD bytes. Callers read `plans` directly."""

    __slots__ = ("plans",)

    def __init__(self) -> None:
        self.plans: dict[bytes, Plan] = {}

    def put(self, raw: bytes, plan: Plan) -> None:
        if len(raw) <= MAX_HEAD:
            if len(self.plans) >= MAX_PLANS:
                self.plans.clear()  # no eviction policy helps with a client that varies its heads
            self.plans[raw] = plan
