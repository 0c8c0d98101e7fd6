"""Everything of an instance that outlives its processes: memory and pipes.

The supervisor makes these once, before any child exists, and never closes them while it serves:
whatever dies, the queue and the requests in it stay.  Nothing here has a name in any file system,
so nothing is left behind when the last process ends.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass

from twofold.errors import ResourceError
from twofold.server.config import Config
from twofold.server.replica import slots

PIPE_BYTES = 1 << 20  # the kernel's default limit for an ordinary user
MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Pipe:
    read: int
    write: int


@dataclass(frozen=True, slots=True)
class Channels:
    layout: slots.Layout
    memory_fd: int
    memory: mmap.mmap
    queue: Pipe
    completions: tuple[Pipe, ...]  # one for each front
    reports: Pipe
    predict_log: Pipe
    native_log: Pipe  # what replicas write to fd 1 and 2 behind Python's back
    access_logs: tuple[Pipe, ...]  # one for each front
    crashes: tuple[int, ...]  # one memfd for each replica index: faulthandler writes there

    def completion_writers(self) -> list[int]:
        """Our own descriptions of the completion pipes: these may not block, the replicas' may."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
        return [os.open(f"/proc/self/fd/{pipe.write}", flags) for pipe in self.completions]

    def close_writers(self) -> None:
        """Let the log writer see the end of its inputs."""
        for pipe in (self.predict_log, self.native_log, *self.access_logs):
            os.close(pipe.write)


def lay(config: Config, fronts: int, replicas: int) -> Channels:
    """Create it all; `replicas` counts the indices that will ever be in use (spares included).

    Raises ResourceError if the memory cannot be mapped, and OSError if there are no descriptors left.
    """
    http = config.http
    layout = slots.Layout(
        fronts,
        max(1, http.queue_size // fronts),
        int(http.max_body_mb * MEGABYTE),
        int(http.max_answer_mb * MEGABYTE),
    )
    try:
        memory_fd = os.memfd_create("twofold")
        os.ftruncate(memory_fd, layout.size)
        memory = slots.attach(memory_fd, layout)
    except OSError as error:
        raise ResourceError(
            f"cannot map {layout.size >> 20} MiB of (sparse) shared memory: {error.strerror}",
            "lower queue_size, max_body_mb or max_answer_mb, or lift RLIMIT_AS",
        ) from None
    return Channels(
        layout=layout,
        memory_fd=memory_fd,
        memory=memory,
        queue=_pipe(write_blocks=False),
        completions=tuple(_pipe(read_blocks=False) for _ in range(fronts)),
        reports=_pipe(read_blocks=False),
        predict_log=_pipe(read_blocks=False, write_blocks=False),
        native_log=_pipe(read_blocks=False, write_blocks=False),
        access_logs=tuple(_pipe(read_blocks=False, write_blocks=False) for _ in range(fronts)),
        crashes=tuple(os.memfd_create(f"twofold-crash-{index}") for index in range(replicas)),
    )


def _pipe(read_blocks: bool = True, write_blocks: bool = True) -> Pipe:
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, read_blocks)
    os.set_blocking(write, write_blocks)
    try:
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        # The user's pipe pages are used up (pipe-user-pages-soft). The default 64 KiB hold the
        # descriptors of 4096 requests or the completions of 2048, more than queue_size allows.
        pass
    return Pipe(read, write)
