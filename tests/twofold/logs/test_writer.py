"""The log writer against real disks, pipes, signals and kills."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.eventually import eventually
from twofold.logs import sinks
from twofold.logs import writer as log_writer

ROOT = Path(__file__).parents[3]
CHILD = """
import json, os, sys
from twofold.logs import writer as log_writer
given = json.loads(sys.argv[1])
def dropped(stream, lines):
    os.write(given["report"], b"%s %d\\n" % (stream.encode(), lines))
inputs = [log_writer.LogInput(**each) for each in given["inputs"]]
log_writer.run(inputs, log_writer.LogDestination(**given["destination"]), dropped)
"""
START = Callable[..., "Running"]


def line(number: int, padding: int = 200) -> bytes:
    return json.dumps({"n": number, "data": {"x": "y" * padding}}).encode() + b"\n"


def numbers(*paths: Path) -> list[int]:
    found = []
    for path in paths:
        content = path.read_bytes()
        assert not content or content.endswith(b"\n")
        found += [json.loads(each)["n"] for each in content.splitlines()]
    return found


def written(path: Path) -> int:
    """LineBuffer so far; to be waited for, as the log writer may be writing one right now."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def drained(writer: log_writer.PipeWriter) -> bool:
    writer.flush()
    return not writer.pending


def send(writer: log_writer.PipeWriter, lines: bytes) -> None:
    """Until the pipe has all of it: what the writer holds back is lost when the test closes the pipe."""
    assert writer.write(lines) == 0
    eventually(lambda: drained(writer), "room in the pipe")


class Running:
    """A log writer in a process of its own, and the writing ends of its inputs."""

    def __init__(
        self, inputs: list[dict[str, object]], stdout: int | None, prefix: list[str], **to: object
    ) -> None:
        pipes = [log_writer.open_pipe() for _ in inputs]
        self.writing = [writing for _, writing in pipes]
        self.report, report = os.pipe()
        os.set_blocking(self.report, False)
        facts = {
            "inputs": [{"fd": fd, **each} for (fd, _), each in zip(pipes, inputs, strict=True)],
            "destination": to,
            "report": report,
        }
        reading = [fd for fd, _ in pipes]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", CHILD, json.dumps(facts)],
            cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, pass_fds=[*reading, report],
        )  # fmt: skip
        for fd in (*reading, report):
            os.close(fd)
        self.lost = {"access": 0, "predict": 0}

    def dropped(self, stream: str = "access") -> int:
        while select.select([self.report], [], [], 0)[0] and (text := os.read(self.report, 65536)):
            for each in text.decode().splitlines():
                name, lines = each.split()
                self.lost[name] += int(lines)
        return self.lost[stream]

    def end(self) -> str:
        """Every writer leaves; the log writer must end by itself. What it said on stderr."""
        while self.writing:
            os.close(self.writing.pop())
        _, said = self.process.communicate(timeout=10)
        assert self.process.returncode == 0, said
        return str(said, "utf-8")


@pytest.fixture
def start() -> Iterator[START]:
    running: list[Running] = []

    def starter(
        *streams: dict[str, object], stdout: int | None = None, prefix: list[str] | None = None, **to: object
    ) -> Running:
        inputs = list(streams) or [{"stream": "access"}]
        running.append(Running(inputs, stdout, prefix or [], **to))
        return running[-1]

    yield starter
    for each in running:
        for fd in (*each.writing, each.report):
            os.close(fd)
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
        if each.process.stderr:
            each.process.stderr.close()


def test_streams_go_to_their_files_and_last_lines_are_kept(start: START, tmp_path: Path) -> None:
    running = start(
        {"stream": "access"}, {"stream": "predict"}, {"stream": "predict", "wrap": True, "replica": 4},
        directory=str(tmp_path),
    )  # fmt: skip
    writer = log_writer.PipeWriter(running.writing[0])
    for number in range(1000):
        send(writer, line(number))
    os.write(running.writing[1], line(7))
    os.write(running.writing[2], b"Fatal Python error: Segmentation fault\n\x18no end")
    running.end()
    assert numbers(tmp_path / "access.log") == list(range(1000))
    records = [json.loads(each) for each in (tmp_path / "predict.log").read_bytes().splitlines()]
    messages = [record["data"]["message"] for record in records if "time" in record]
    assert messages == ["Fatal Python error: Segmentation fault", "\x18no end"]
    assert len(records) == 3
    assert running.dropped() == 0


def test_signals_that_end_others_do_not_end_the_log_writer(start: START, tmp_path: Path) -> None:
    running = start(directory=str(tmp_path))
    os.write(running.writing[0], line(0))
    eventually((tmp_path / "access.log").exists, "the file")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        running.process.send_signal(number)
    os.write(running.writing[0], line(1))
    running.end()
    assert numbers(tmp_path / "access.log") == [0, 1]


def test_rotation_keeps_the_newest_files(start: START, tmp_path: Path) -> None:
    running = start(directory=str(tmp_path), max_bytes=10_000, keep=2)
    writer = log_writer.PipeWriter(running.writing[0])
    for number in range(0, 400, 100):  # both by the line and more than a file at once
        send(writer, b"".join(line(each) for each in range(number, number + 60)))
        for each in range(number + 60, number + 100):
            send(writer, line(each))
    running.end()
    paths = [tmp_path / name for name in ("access.log.2", "access.log.1", "access.log")]
    assert sorted(tmp_path.glob("access*")) == sorted(paths)
    assert all(path.stat().st_size <= 10_000 for path in paths)
    kept = numbers(*paths)
    assert kept == list(range(kept[0], 400))
    assert running.dropped() == 0


def test_rotation_that_keeps_no_file(start: START, tmp_path: Path) -> None:
    running = start(directory=str(tmp_path), max_bytes=5_000, keep=0)
    for number in range(100):
        os.write(running.writing[0], line(number))
        time.sleep(0.001)
    running.end()
    assert [path.name for path in tmp_path.glob("access*")] == ["access.log"]
    assert numbers(tmp_path / "access.log")[-1] == 99


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_reopens_after_a_rename(start: START, tmp_path: Path, number: int) -> None:
    running = start(directory=str(tmp_path))
    current, moved = tmp_path / "access.log", tmp_path / "access.log.old"
    os.write(running.writing[0], line(1))
    eventually(lambda: written(current) == 1, "the first line")
    current.rename(moved)
    os.write(running.writing[0], line(2))
    eventually(lambda: written(moved) == 2, "before the signal it goes on in the old file")
    running.process.send_signal(number)
    eventually(current.exists, "the new file, though nothing is written")
    os.write(running.writing[0], line(3))
    running.end()
    assert numbers(moved) == [1, 2]
    assert numbers(current) == [3]


def test_a_full_disk_drops_lines_and_logging_resumes(start: START, tmp_path: Path) -> None:
    current = tmp_path / "access.log"
    current.symlink_to("/dev/full")
    running = start(directory=str(tmp_path))
    for number in range(20):
        os.write(running.writing[0], line(number))
    eventually(lambda: running.dropped() == 20, "20 lines dropped")
    current.unlink()
    os.write(running.writing[0], line(20))
    eventually(lambda: written(current) == 1, "logging again")
    assert numbers(current) == [20]
    said = running.end()
    assert said.count("No space left on device; log lines are dropped") == 1, "said once, not each time"
    assert "writing again, 20 lines were dropped" in said
    assert running.dropped() == 20


def test_a_file_that_may_not_grow_holds_whole_lines(start: START, tmp_path: Path) -> None:
    """EFBIG in mid line, which stops write() in the same way as a disk with 1,000 bytes left."""
    current = tmp_path / "access.log"
    running = start(directory=str(tmp_path))
    pid = running.process.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    os.write(running.writing[0], b"".join(line(number) for number in range(10)))
    whole = 1000 // len(line(0))
    eventually(lambda: running.dropped() == 10 - whole, "what did not fit is counted")
    assert numbers(current) == list(range(whole))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.write(running.writing[0], line(10))
    running.end()
    assert numbers(current) == [*range(whole), 10]


def test_a_disk_of_one_megabyte_fills_up_and_is_emptied(start: START, tmp_path: Path) -> None:
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = [*private, "sh", "-c", f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "$0" "$@"']
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no ordinary user mount a tmpfs")
    running = start(directory=str(tmp_path), prefix=mount)
    inside = Path(f"/proc/{running.process.pid}/root{tmp_path}/access.log")
    writer = log_writer.PipeWriter(running.writing[0])
    block = b"".join(line(number) for number in range(500))
    for _ in range(12):
        send(writer, block)
    eventually(running.dropped, "a full disk")
    eventually(lambda: written(inside) + running.dropped() == 6000, "every line is written or counted")
    assert len(numbers(inside)) + running.dropped() == 6000
    assert 0.9 * 2**20 < inside.stat().st_size <= 2**20
    os.truncate(inside, 0)
    dropped = running.dropped()
    send(writer, line(1))
    eventually(lambda: written(inside) == 1, "logging again")
    assert numbers(inside) == [1]
    running.end()
    assert running.dropped() == dropped


def test_a_directory_that_vanishes_and_returns(start: START, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    running = start(directory=str(logs))
    os.write(running.writing[0], line(1))
    eventually(lambda: running.dropped() == 1, "a line dropped")
    logs.mkdir()
    os.write(running.writing[0], line(2))
    running.end()
    assert numbers(logs / "access.log") == [2]


def test_a_stuck_reader_of_stdout_drops_lines_and_delays_no_writer(start: START) -> None:
    reading, writing = os.pipe()
    running = start({"stream": "access"}, {"stream": "predict"}, stdout=writing)
    os.close(writing)
    writer = log_writer.PipeWriter(running.writing[0])
    block = b"".join(line(number, 900) for number in range(200))
    slowest, refused, sent = 0.0, 0, 0
    end = time.monotonic() + 20
    while running.dropped() < 400:
        started = time.monotonic()
        refused += writer.write(block)
        slowest = max(slowest, time.monotonic() - started)
        sent += 200
        assert time.monotonic() < end
        time.sleep(0.002)
    assert slowest < 0.5, "a writer never waits"
    os.set_blocking(reading, False)
    output = b""
    while b'"n": 777' not in output or writer.pending:  # the reader is back, and so is logging
        if select.select([reading], [], [], 0.01)[0]:
            output += os.read(reading, 1 << 20)
        os.write(running.writing[1], line(777))
        writer.flush()
        assert time.monotonic() < end
    while running.writing:
        os.close(running.writing.pop())
    os.set_blocking(reading, True)
    with os.fdopen(reading, "rb") as pipe:
        output += pipe.read()
    running.end()
    access = [n for each in output.splitlines() if (n := json.loads(each)["n"]) != 777]
    assert len(access) + refused + running.dropped() == sent, "every line was written or counted"
    assert len(access) > 0


def test_stdout_whose_reader_has_gone(start: START) -> None:
    reading, writing = os.pipe()
    running = start(stdout=writing)
    os.close(writing)
    os.close(reading)
    os.write(running.writing[0], line(1) + line(2))
    eventually(lambda: running.dropped() == 2, "both lines counted")
    assert "Broken pipe" in running.end()


def test_stdout_that_is_a_file(start: START, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb") as out:
        running = start({"stream": "access"}, {"stream": "predict"}, stdout=out.fileno())
        os.write(running.writing[0], line(1))
        os.write(running.writing[1], line(2))
        running.end()
    assert sorted(numbers(path)) == [1, 2]


WRITER = """
import sys
from twofold.logs import writer as log_writer
first = int(sys.argv[2])
writer = log_writer.PipeWriter(int(sys.argv[1]))
line = b'{"n": %d, "data": {"x": "' + b"y" * 3000 + b'"}}\\n'
for number in range(first, first + 1000, 50):  # beyond PIPE_BUF a write may be cut anywhere
    writer.write(b"".join(line % each for each in range(number, number + 50)))
print("full", flush=True)
sys.stdin.read()
"""


def test_a_writer_killed_in_mid_line_leaves_whole_lines(start: START, tmp_path: Path) -> None:
    running = start(directory=str(tmp_path))
    fd = running.writing[0]
    for life in range(5):
        running.process.send_signal(signal.SIGSTOP)  # so that the pipe fills up in mid line
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(fd), str(life * 1000)],
            cwd=ROOT, pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"full\n"
        writer.kill()
        writer.communicate()
        running.process.send_signal(signal.SIGCONT)
        eventually(lambda: not pending(fd), "the log writer has read everything")
    send(log_writer.PipeWriter(fd), line(1))
    running.end()
    found = numbers(tmp_path / "access.log")
    assert found[-1] == 1
    assert {number // 1000 for number in found[:-1]} == set(range(5)), "every life has written"
    assert running.dropped() == 5, "and each was killed in mid line"


def pending(fd: int) -> int:
    """Bytes that wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_half_a_line_of_a_dead_writer_is_dropped_and_counted(start: START, tmp_path: Path) -> None:
    running = start(directory=str(tmp_path))
    os.write(running.writing[0], line(1) + line(2)[:50])
    send(log_writer.PipeWriter(running.writing[0]), line(3))
    running.end()
    assert numbers(tmp_path / "access.log") == [1, 3]
    assert running.dropped() == 1


def test_half_a_line_on_the_disk_is_mended(start: START, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(line(1) + line(2)[:50])
    running = start(directory=str(tmp_path))
    os.write(running.writing[0], line(3))
    running.end()
    assert numbers(path) == [1, 3]


@pytest.mark.parametrize(("number_of_signal", "lost"), [(signal.SIGKILL, 2 * 10000), (signal.SIGUSR2, 0)])
def test_a_successor_of_the_log_writer_tears_no_line(
    tmp_path: Path, number_of_signal: int, lost: int
) -> None:
    """The pipe outlives the log writer, so a successor goes on there; one that hands over loses nothing."""
    reading, writing = log_writer.open_pipe()
    report = os.open(os.devnull, os.O_WRONLY)
    writer = log_writer.PipeWriter(writing)
    facts = json.dumps({
        "inputs": [{"fd": reading, "stream": "access"}], "destination": {"directory": str(tmp_path)},
        "report": report,
    })  # fmt: skip
    number = 0
    for life in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, facts], cwd=ROOT, pass_fds=[reading, report], stderr=subprocess.PIPE
        )
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            number += not writer.write(line(number))
            time.sleep(0.0002)
        if life < 2:
            child.send_signal(number_of_signal)
            child.communicate(timeout=10)
    os.close(reading)
    os.close(report)
    eventually(lambda: drained(writer), "the backlog is sent")
    os.close(writing)
    assert child.communicate(timeout=10)[1] == b""
    found = numbers(tmp_path / "access.log")
    assert found[-1] == number - 1
    assert len(found) >= number - lost
    assert found == sorted(set(found))


def test_a_writer_holds_back_what_the_pipe_does_not_take() -> None:
    reading, writing = log_writer.open_pipe()
    try:
        writer = log_writer.PipeWriter(writing)
        block = b"".join(line(number, 400) for number in range(1000))
        sent, refused = 0, 0
        while not refused:
            refused = writer.write(block)
            sent += not refused
        assert refused == 1000
        assert log_writer.BACKLOG - len(block) < writer.pending <= log_writer.BACKLOG
        received = b""
        while writer.pending:
            received += os.read(reading, 1 << 20)
            writer.flush()
        received += os.read(reading, 1 << 21)
        assert received == log_writer.CANCEL + block * sent
    finally:
        os.close(reading)
        os.close(writing)


def test_a_line_without_end_does_not_fill_the_memory(start: START, tmp_path: Path) -> None:
    running = start(directory=str(tmp_path))
    writer = log_writer.PipeWriter(running.writing[0])
    send(writer, line(1))
    for _ in range(3 * sinks.MAX_LINE // 65536):
        send(writer, b"x" * 65536)
    send(writer, b"\n" + line(2))
    running.end()
    assert numbers(tmp_path / "access.log") == [1, 2]
    assert running.dropped() == 1


@given(
    st.lists(st.binary(max_size=30).map(lambda raw: raw.translate(None, b"\n\x18")), max_size=20),
    st.lists(st.integers(0, 700), max_size=12),
)
def test_lines_are_the_same_however_they_are_cut(texts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(text + b"\n" for text in texts)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    lines = log_writer.LineBuffer(raw=False)
    pieces = [lines.feed(data[a:b]) for a, b in itertools.pairwise(edges)]
    assert b"".join(pieces) == data
    assert all(piece.endswith(b"\n") for piece in pieces if piece)
    assert (lines.rest(), lines.torn) == (b"", 0)


def test_the_log_writer_is_small(start: START, tmp_path: Path) -> None:
    running = start(directory=str(tmp_path))
    writer = log_writer.PipeWriter(running.writing[0])
    for _ in range(100):
        send(writer, line(1) * 500)
    modules = subprocess.run(
        [sys.executable, "-c", "import sys; from twofold.logs import writer; print(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    heavy = {
        "asyncio",
        "typing_extensions",
        "logging",
        "subprocess",
        "socket",
        "yaml",
        "starlette",
        "json.decoder",
    }
    assert heavy.isdisjoint(modules) or not heavy - {"json.decoder"} & set(modules)
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    assert resident < 30_000, "KiB, counting the interpreter itself"
    running.end()
