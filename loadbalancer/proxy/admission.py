"""Who may come in: connections by address, requests by head, by rate and by bandwidth.

Touches nothing but what it is handed.  The verdict on a head is remembered with the plan that is
made of it, so that equal heads are judged once.
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
    from twofold.loadbalancer.proxy.client import Client
    from twofold.loadbalancer.proxy.process import Proxy

MB = 1 << 20


class Admission:
    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.config = config = proxy.config
        self.authorization = Authorization(config)
        self.hops = identity.hops(config)
        self.max_body = int(config.limits.max_body_mb * MB)
        self.memo: HeadMemo[ProxyPlan] = HeadMemo()
        limits, share = config.bandwidth, config.listen.proxies
        self._requests = Gcra(limits.requests_per_second / share) if limits.requests_per_second else None
        self._caller_requests = _callers(limits.caller_requests_per_second / share)
        self._caller_bits = _callers(limits.caller_bandwidth_mbps * 1e6 / share)
        self._caller_header = limits.caller_header.lower().encode()
        # Nothing is counted by request or by caller: bandwidth alone decides.
        limits_by_request = (self._requests, self._caller_requests, self._caller_bits)
        self.simple = all(limit is None for limit in limits_by_request)

    def plan(self, raw: bytes) -> ProxyPlan:
        """What follows from a head; raises BadRequest."""
        known = self.memo.plans.get(raw)
        if known is not None and known.keep_until > self.proxy.wall:
            return known
        head = request_head.parse_head(raw)
        verdict, keep_until = self.authorization.refusal(head, self.proxy.wall)
        made = request_plan.make_plan(head, self.max_body, verdict, keep_until)
        digest = self.authorization.digest(head)
        if digest is not None:
            made = replace(made, digest=digest)
        self.memo.put(raw, made)
        return made

    def greet(self, client: Client) -> None:
        """A new connection: is its address let in, and is there room?"""
        if not client.peer:  # a PROXY line has not named it
            peer = client.transport.get_extra_info("peername")
            client.peer = peer[0] if isinstance(peer, tuple) else ""
        if not self.authorization.admits(client.peer):
            self.proxy.cells[shared_memory.UNAUTHORISED] += 1
            client.transport.abort()
        elif not self.proxy.connection_limit.has_room(self.proxy.now):
            client.refuse(error_responses.CONNECTION_LIMITED, close=True)

    def admit(self, client: Client, chosen: ProxyPlan) -> Refusal | None:
        """Before the body is read: the limits by request, by caller, then bandwidth."""
        now, cells = monotonic_ns(), self.proxy.cells
        if not self.simple:
            refused = self._by_rate(client, chosen, now)
            if refused is not None:
                return refused
        delay = self.proxy.limiter.refusal_delay(len(client.raw) + chosen.length)
        if delay:
            cells[shared_memory.REFUSED_BANDWIDTH] += 1
            return error_responses.bandwidth(delay)
        return None

    def _by_rate(self, client: Client, chosen: ProxyPlan, now: int) -> Refusal | None:
        cells = self.proxy.cells
        caller = self._caller(client, chosen)
        size = 8 * (chosen.length + len(client.raw))
        for accounts, units in ((self._caller_requests, 1), (self._caller_bits, size)):
            wait = accounts.of(caller).take(now, units) if accounts is not None else 0
            if wait:
                cells[shared_memory.REFUSED_CALLER] += 1
                return error_responses.caller_limit(math.ceil(wait / 1e9))
        wait = self._requests.take(now) if self._requests is not None else 0
        if wait:
            cells[shared_memory.REFUSED_RATE] += 1
            return error_responses.request_rate(math.ceil(wait / 1e9))
        return None

    def answered(self, client: Client, nbytes: int) -> None:
        """A caller with a bandwidth of its own has been sent so much."""
        if self._caller_bits is not None:
            caller = self._caller(client, client.plan)
            self._caller_bits.of(caller).charge(monotonic_ns(), 8 * nbytes)

    def _caller(self, client: Client, chosen: ProxyPlan) -> str:
        if self._caller_header:
            for name, value in chosen.head.headers:
                if name == self._caller_header:
                    return value.decode("latin-1")
        return forwarding.client_address(chosen.head, client.peer, self.hops)


def _callers(rate: float) -> CallerRates | None:
    return CallerRates(rate) if rate else None
