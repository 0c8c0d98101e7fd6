"""The resources that outlive every child, and the entry points of the children.

Touches the listening sockets, the shared memory and the pipes of the access log.  The supervisor keeps them
open and does not use them, so they survive the failure of any child.
"""

from __future__ import annotations

import mmap
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field

from twofold.errors import ExitCode
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.lease import SharedBucket
from twofold.loadbalancer.child_context import ControllerContext, ProxyContext
from twofold.loadbalancer.config import MAX_PROXIES, Config
from twofold.loadbalancer.listeners import ListenerSet
from twofold.logs import writer
from twofold.process.heartbeat import Heartbeat

NUMBERS = range(2 * MAX_PROXIES)  # the numbers of proxies, for two generations
LOG_WRITERS_BLOCK = shared_memory.MAX_PROXIES - 1  # index of the log writer's block of counters
MEGABYTE = 1 << 20


def _proxy(place: ProxyContext) -> int:
    from twofold.loadbalancer.proxy import process

    return process.run(place)


def _controller(place: ControllerContext) -> int:
    from twofold.loadbalancer.control import controller  # imports a web framework that only it needs

    return controller.run(place)


@dataclass(frozen=True, slots=True)
class ChildEntries:
    """The entry points of the children, and the modules that contain them.

    `preload`: modules that the supervisor imports, so that a proxy starts within milliseconds.
    """

    proxy: Callable[[ProxyContext], int] = _proxy
    controller: Callable[[ControllerContext], int] = _controller
    preload: tuple[str, ...] = ("twofold.loadbalancer.proxy.process",)
    modules: tuple[str, ...] = (
        "twofold.loadbalancer.proxy.process",
        "twofold.loadbalancer.control.controller",
    )


@dataclass(slots=True)
class Resources:
    config: Config
    lives: ChildEntries
    memory_fd: int
    shared: mmap.mmap
    sockets: ListenerSet = field(default_factory=ListenerSet)
    pipes: dict[int, tuple[int, int]] = field(default_factory=dict)  # (reading, writing) by proxy

    def texts(self) -> list[str]:
        """The addresses of the settings at which sockets are bound."""
        status = self.config.control.status
        return [*self.config.listen.listen, *([status] if status else [])]

    def lay_pipe(self, number: int) -> None:
        """Make a proxy's access-log pipe, if missing; a restarted proxy uses the same pipe."""
        if number not in self.pipes:
            self.pipes[number] = writer.open_pipe()
            os.set_blocking(self.pipes[number][1], False)

    def close_writers(self) -> None:
        """Close this process's pipe ends, so that the log writer reads EOF when every proxy has ended."""
        while self.pipes:
            for fd in self.pipes.popitem()[1]:
                os.close(fd)

    # ------------------------------------------------------------------ entry points, each in a child process

    def be_proxy(self, number: int, ready: int) -> int:
        listen = self.config.listen.listen
        self.sockets.inherit(listen)
        place = ProxyContext(
            number=number,
            listeners=tuple(self.sockets.held[text] for text in listen),
            memory_fd=self.memory_fd,
            access_log=self.pipes[number][1] if self.config.log.access_log else -1,
            ready=ready,
            config=self.config,
            beat=number,
        )
        return self.lives.proxy(place)

    def be_controller(self, beat: int, ready: int) -> int:
        status = self.config.control.status
        self.sockets.inherit([status])
        return self.lives.controller(
            ControllerContext(
                self.memory_fd, self.config, os.getppid(), self.sockets.held.get(status), ready, beat
            )
        )

    def be_log_writer(self, beat: int, ready: int) -> int:
        self.sockets.inherit([])
        os.write(ready, b"r")
        counters = shared_memory.open_counters(self.shared, LOG_WRITERS_BLOCK)
        log = self.config.log

        def dropped(stream: str, lines: int) -> None:
            counters.cells[shared_memory.ACCESS_DROPPED] += lines
            counters.flush()

        inputs = []
        for reading, writing in self.pipes.values():
            os.close(writing)  # otherwise this process would keep its own input open
            inputs.append(writer.LogInput(reading, "access"))
        most, source = int(log.log_max_mb * MEGABYTE), log.deployment_id or "twofold"
        heart = Heartbeat(shared_memory.heartbeats(self.shared), beat)
        destination = writer.LogDestination(log.log_dir, most, log.log_keep, source)
        writer.run(inputs, destination, dropped, heart.beat)
        return int(ExitCode.OK)

    # ------------------------------------------------------------------ messages for the operator

    def urls(self) -> list[str]:
        secure = bool(self.config.listen.tls_certificate)
        return [self.sockets.url(text, secure) for text in self.config.listen.listen]

    def sentence(self) -> str:
        """One line that describes addresses, instances and bandwidth."""
        endpoints = len(shared_memory.endpoint_table(self.shared).read().get("instances", ()))
        mbps = SharedBucket(self.shared, self.memory_fd).rate / 1e6  # may differ from the settings
        rate = f"{mbps:g} Mbps" if mbps else "unlimited bandwidth"
        many = "1 instance" if endpoints == 1 else f"{endpoints} instances"
        return f"balancing on {' and '.join(self.urls())} over {many}, {rate}"

    def example(self) -> str:
        """A shell command that calls predict."""
        url = self.urls()[0]
        target = f"{url.replace('0.0.0.0', '127.0.0.1').replace('[::]', '[::1]')}/predict"
        if url.startswith("unix:"):
            target = f"--unix-socket {shlex.quote(url.removeprefix('unix:'))} http://localhost/predict"
        trust = "--insecure " if url.startswith("https:") else ""
        return f"curl {trust}-H 'content-type: application/json' --data-binary '[[1, 2, 3]]' {target}"
