"""The channels of an instance: the shared memory and the pipes, which outlive single processes.

Touches descriptors and the memory mapping.  The supervisor makes the channels once, before it starts a
child, and keeps them open while it serves.  Therefore the queue and its requests survive the end of any
child.  No channel has a name in a file system, so the kernel frees them all with the last process.
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
    """The two descriptors of a pipe."""

    read: int
    write: int


@dataclass(frozen=True, slots=True)
class Channels:
    """The shared memory of an instance, its pipes, and the crash files of its replicas."""

    layout: slots.Layout
    memory_fd: int
    memory: mmap.mmap
    queue: Pipe
    completions: tuple[Pipe, ...]  # one for each front
    reports: Pipe
    predict_log: Pipe
    native_log: Pipe  # output of replicas to fd 1 and 2 that bypasses Python's streams
    access_logs: tuple[Pipe, ...]  # one for each front
    crashes: tuple[int, ...]  # one memfd for each replica index: faulthandler writes there

    def completion_writers(self) -> list[int]:
        """New, non-blocking descriptors of the completion pipes; those of the replicas block."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
        return [os.open(f"/proc/self/fd/{pipe.write}", flags) for pipe in self.completions]

    def close_writers(self) -> None:
        """Close the write ends of the log pipes, so that the log writer reads end of file."""
        for pipe in (self.predict_log, self.native_log, *self.access_logs):
            os.close(pipe.write)


def lay(config: Config, fronts: int, replicas: int) -> Channels:
    """Create the channels. `replicas` is the number of replica indices, spares included.

    Raises ResourceError if the memory cannot be mapped, and OSError if no descriptor is free.
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
        # The user's limit of pipe pages is reached (pipe-user-pages-soft).  The default of 64 KiB holds the
        # descriptors of 4096 requests or the completions of 2048; queue_size allows no more.
        pass
    return Pipe(read, write)
