"""What this load balancer calls itself in Via: how it recognises its own requests when they come round.

Touches what tells this machine from others: its host name, its boot, its network namespace.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from twofold.loadbalancer.http.forwarding import Hops
from twofold.net.networks import Networks

if TYPE_CHECKING:
    from twofold.loadbalancer.config import Config


def hops(config: Config) -> Hops:
    """The same in all proxies of a load balancer and after a reload; another in any other load balancer."""
    scheme = b"https" if config.listen.tls_certificate else b"http"
    return Hops(_pseudonym(config.listen.listen), scheme, Networks(config.access.trusted_proxies))


def _pseudonym(listen: Iterable[str]) -> bytes:
    """Two load balancers in a row must have different ones.

    No two of one network namespace listen on the same address.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/net")
    marks = [socket.gethostname(), *listen]
    marks += [boot.read_text()] if boot.exists() else []
    marks += [str(namespace.readlink())] if namespace.is_symlink() else []
    return b"twofold-" + hashlib.sha256("\n".join(marks).encode()).hexdigest()[:12].encode()
