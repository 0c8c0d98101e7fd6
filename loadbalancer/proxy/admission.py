"""Admission control: connections by address, requests by head, by rate and by bandwidth.

Touches its arguments only.  The verdict on a head is cached with its plan, so that equal heads are checked
once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from time import monotonic_ns
from typing import TYPE_CHECKING

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.access import identity
from twofold.loadbalancer.access.authorization import Authorization
from twofold.loadbalancer.bandwidth.request_rate import CallerRates, Gcra
from twofold.loadbalancer.http import error_responses, forwarding, request_plan
from twofold.loadbalancer.http.request_plan import ProxyPlan
from twofold.wire import request_head
from twofold.wire.head_memo import HeadMemo
from twofold.wire.refusal import Refusal

if TYPE_CHECKING:
    from twofold.loadbalancer.bandwidth.limiter import BandwidthLimiter
    from twofold.loadbalancer.config import Config
    from twofold.loadbalancer.proxy.services import ProxyState

MB = 1 << 20


class Admission:
    """`simple`: there is no limit by request or by caller; only bandwidth is checked."""

    def __init__(
        self, config: Config, clock: ProxyState, cells: list[int], limiter: BandwidthLimiter
    ) -> None:
        self.authorization = Authorization(config)
        self.hops = identity.hops(config)
        self.memo: HeadMemo[ProxyPlan] = HeadMemo()
        self._clock = clock
        self._cells = cells
        self._limiter = limiter
        self._max_body = int(config.limits.max_body_mb * MB)
        limits, share = config.bandwidth, config.listen.proxies
        self._requests = Gcra(limits.requests_per_second / share) if limits.requests_per_second else None
        self._caller_requests = _callers(limits.caller_requests_per_second / share)
        self._caller_bits = _callers(limits.caller_bandwidth_mbps * 1e6 / share)
        self._caller_header = limits.caller_header.lower().encode()
        limits_by_request = (self._requests, self._caller_requests, self._caller_bits)
        self.simple = all(limit is None for limit in limits_by_request)

    def plan(self, raw: bytes) -> ProxyPlan:
        """The plan of a request head, from the cache if possible. Raises BadRequest."""
        known = self.memo.plans.get(raw)
        if known is not None and known.keep_until_s > self._clock.wall_s:
            return known
        head = request_head.parse_head(raw)
        verdict, keep_until_s = self.authorization.refusal(head, self._clock.wall_s)
        made = request_plan.make_plan(head, self._max_body, verdict, keep_until_s)
        digest = self.authorization.digest(head)
        if digest is not None:
            made = replace(made, digest=digest)
        self.memo.put(raw, made)
        return made

    def admits(self, peer: str) -> bool:
        """Whether a client at this address may connect."""
        return self.authorization.admits(peer)

    def admit(self, plan: ProxyPlan, peer: str, head_size: int) -> Refusal | None:
        """The refusal, or None: checks the limits by caller, by request rate, then bandwidth."""
        if not self.simple:
            refused = self._by_rate(plan, peer, head_size)
            if refused is not None:
                return refused
        delay_s = self._limiter.refusal_delay(head_size + plan.length)
        if delay_s:
            self._cells[shared_memory.REFUSED_BANDWIDTH] += 1
            return error_responses.bandwidth(delay_s)
        return None

    def _by_rate(self, plan: ProxyPlan, peer: str, head_size: int) -> Refusal | None:
        now_ns, caller = monotonic_ns(), self._caller(plan, peer)
        size_bits = 8 * (plan.length + head_size)
        for accounts, units in ((self._caller_requests, 1), (self._caller_bits, size_bits)):
            wait_ns = accounts.of(caller).take(now_ns, units) if accounts is not None else 0
            if wait_ns:
                self._cells[shared_memory.REFUSED_CALLER] += 1
                return error_responses.caller_limit(math.ceil(wait_ns / 1e9))
        wait_ns = self._requests.take(now_ns) if self._requests is not None else 0
        if wait_ns:
            self._cells[shared_memory.REFUSED_RATE] += 1
            return error_responses.request_rate(math.ceil(wait_ns / 1e9))
        return None

    def responded(self, plan: ProxyPlan, peer: str, nbytes: int) -> None:
        """Charge a response of `nbytes` to the caller's own bandwidth, if callers have one."""
        if self._caller_bits is not None:
            self._caller_bits.of(self._caller(plan, peer)).charge(monotonic_ns(), 8 * nbytes)

    def _caller(self, plan: ProxyPlan, peer: str) -> str:
        if self._caller_header:
            for name, value in plan.head.headers:
                if name == self._caller_header:
                    return value.decode("latin-1")
        return forwarding.client_address(plan.head, peer, self.hops)


def _callers(rate: float) -> CallerRates | None:
    return CallerRates(rate) if rate else None
