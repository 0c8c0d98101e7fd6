"""What a process of the load balancer is born with: descriptors, its number, the configuration.

The supervisor hands a place to each child that it forks; nothing here acts.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twofold.loadbalancer.config import Config


@dataclass(frozen=True, slots=True)
class ProxyContext:
    """A proxy's. It stops accepting and drains at SIGTERM."""

    number: int  # its block of counters and row of cells; unique among both generations alive
    listeners: tuple[socket.socket, ...]  # shared with the other proxies; non-blocking
    memory_fd: int
    access_log: int  # the pipe of the access log, non-blocking, this proxy's alone; -1: none
    ready: int  # one byte is to be written here when it accepts
    config: Config
    beat: int  # which word its heartbeat is


@dataclass(frozen=True, slots=True)
class ControllerContext:
    """The controller's. It ends at SIGTERM."""

    memory_fd: int
    config: Config
    supervisor: int  # pid: SIGHUP there reloads
    status: socket.socket | None  # listener of the status page and the metrics
    ready: int  # one byte is to be written here when the endpoint table is published
    beat: int  # which word its heartbeat is
