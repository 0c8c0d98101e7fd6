"""What the supervisor passes to a child process: descriptors, its number, the configuration.

Touches nothing.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twofold.loadbalancer.config import Config


@dataclass(frozen=True, slots=True)
class ProxyContext:
    """For a proxy, which stops accepting and drains at SIGTERM."""

    number: int  # of its block of counters and row of cells; unique among both living generations
    listeners: tuple[socket.socket, ...]  # shared with the other proxies; non-blocking
    memory_fd: int
    access_log: int  # its own pipe of the access log, non-blocking; -1: none
    ready: int  # fd to which it writes one byte when it accepts
    config: Config
    beat: int  # index of its heartbeat word


@dataclass(frozen=True, slots=True)
class ControllerContext:
    """For the controller, which ends at SIGTERM."""

    memory_fd: int
    config: Config
    supervisor: int  # pid of the supervisor, which reloads at SIGHUP
    status: socket.socket | None  # listener of the status page and the metrics
    ready: int  # fd to which it writes one byte when the endpoint table is published
    beat: int  # index of its heartbeat word
