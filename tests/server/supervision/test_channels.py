"""What an instance is made of before any process: memory, pipes, and their failures."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys

import pytest

from tests.support.dispatch_harness import open_channels
from twofold.errors import ResourceError
from twofold.server.config import Config, HttpSettings, ReplicaSettings
from twofold.server.machine import capacity
from twofold.server.replica import frame, slots
from twofold.server.supervision import channels


def test_more_memory_than_may_be_mapped_is_told() -> None:
    limit = 4 << 30
    script = (
        "from twofold.server.supervision import channels\n"
        "from twofold.server.config import Config, HttpSettings\n"
        "try: channels.lay(Config(http=HttpSettings(queue_size=1024, max_body_mb=100.0)), 1, 1)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.stdout.startswith("ResourceError"), done.stdout + done.stderr
    assert "queue_size" in done.stdout and "RLIMIT_AS" in done.stdout


def test_memory_is_sparse() -> None:
    with open_channels(count=64, body=10 << 20, answer=20 << 20) as pipes:
        assert os.fstat(pipes.memory_fd).st_size > 64 * (30 << 20)
        assert os.fstat(pipes.memory_fd).st_blocks * 512 < 1 << 20


def test_each_side_of_each_pipe_blocks_as_it_should() -> None:
    with open_channels(fronts=2, count=4, replicas=3) as pipes:
        assert os.get_blocking(pipes.queue.read), "a replica sleeps there"
        assert not os.get_blocking(pipes.queue.write), "a front never does"
        assert len(pipes.completions) == len(pipes.access_logs) == 2 and len(pipes.crashes) == 3
        for pipe in pipes.completions:
            assert not os.get_blocking(pipe.read) and os.get_blocking(pipe.write)
        for pipe in (pipes.predict_log, pipes.native_log, *pipes.access_logs):
            assert not os.get_blocking(pipe.read) and not os.get_blocking(pipe.write)
        for pipe in (pipes.queue, *pipes.completions, pipes.reports):
            assert not os.get_inheritable(pipe.read) and not os.get_inheritable(pipe.write)


def test_the_supervisors_own_writers_do_not_block_and_leave_the_replicas_alone() -> None:
    with open_channels() as pipes:
        (writer,) = pipes.completion_writers()
        try:
            assert not os.get_blocking(writer) and os.get_blocking(pipes.completions[0].write)
            os.write(writer, b"x" * frame.COMPLETION_SIZE)
            assert os.read(pipes.completions[0].read, 64) == b"x" * frame.COMPLETION_SIZE
        finally:
            os.close(writer)


def test_queue_and_completions_hold_all_slots_at_once() -> None:
    most = HttpSettings.__dataclass_fields__["queue_size"].metadata["high"]
    read, write = os.pipe()
    try:
        smallest = fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)
    finally:
        os.close(read)
        os.close(write)
    assert most * frame.COMPLETION_SIZE <= smallest and most * frame.DESCRIPTOR_SIZE <= smallest


def test_the_settings_stay_within_the_places_of_the_memory() -> None:
    fields = ReplicaSettings.__dataclass_fields__
    spares = fields["spare"].metadata["high"]
    assert fields["replicas"].metadata["high"] + spares <= slots.MAX_REPLICAS
    assert capacity.MOST_REPLICAS + spares <= slots.MAX_REPLICAS
    assert HttpSettings.__dataclass_fields__["fronts"].metadata["high"] < slots.MAX_FRONTS
    assert capacity.MOST_REPLICAS // 8 < slots.MAX_FRONTS


def test_slots_are_shared_out_among_fronts() -> None:
    with open_channels(count=9, fronts=4) as pipes:
        assert pipes.layout.slots_per_front == 2
    with open_channels(count=2, fronts=4) as pipes:
        assert pipes.layout.slots_per_front == 1, "a front without a slot could serve nobody"


def test_a_memory_that_no_file_can_have() -> None:
    huge = HttpSettings(queue_size=2048, max_body_mb=1024.0, max_answer_mb=1024.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, hard))
    try:
        with pytest.raises(ResourceError, match="sparse"):
            channels.lay(Config(http=huge), 1, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
