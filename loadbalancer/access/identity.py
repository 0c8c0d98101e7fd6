"""The load balancer's pseudonym in Via, by which it detects forwarding loops.

Reads the machine's host name, boot id and network namespace.
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
    """The identity: equal in all proxies and after a reload, different in every other load balancer."""
    scheme = b"https" if config.listen.tls_certificate else b"http"
    return Hops(_pseudonym(config.listen.listen), scheme, Networks(config.access.trusted_proxies))


def _pseudonym(listen: Iterable[str]) -> bytes:
    """Unique, because two load balancers of one network namespace cannot listen on the same address."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/net")
    marks = [socket.gethostname(), *listen]
    marks += [boot.read_text()] if boot.exists() else []
    marks += [str(namespace.readlink())] if namespace.is_symlink() else []
    return b"twofold-" + hashlib.sha256("\n".join(marks).encode()).hexdigest()[:12].encode()
