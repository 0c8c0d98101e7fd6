"""Why a process ended: real children, imitated cgroup trees, what faulthandler really writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from twofold.errors import ExitCode
from twofold.server.supervision import exit_reasons


def status_of(end: Callable[[], None]) -> int:
    """The wait status of a forked child that ends like this."""
    pid = os.fork()
    if not pid:
        try:
            end()
        finally:
            os._exit(99)
    return os.waitpid(pid, 0)[1]


def die_by(number: int) -> Callable[[], None]:
    def end() -> None:
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    return end


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGTERM, "killed by SIGTERM"),
        (signal.SIGABRT, "killed by SIGABRT"),
        (signal.SIGBUS, "killed by SIGBUS"),
        (signal.SIGRTMIN + 5, f"killed by signal {signal.SIGRTMIN + 5}"),
    ],
)
def test_signals_have_their_names(number: int, line: str) -> None:
    assert exit_reasons.decode(status_of(die_by(number)), out_of_memory=False) == line


def test_a_sigkill_is_the_kernels_when_it_counted_one() -> None:
    status = status_of(die_by(signal.SIGKILL))
    assert exit_reasons.decode(status, out_of_memory=True).startswith("out of memory: killed by the kernel")
    assert exit_reasons.decode(status, out_of_memory=False).startswith("killed by SIGKILL from outside")


def test_only_a_sigkill_can_be_the_kernels() -> None:
    assert exit_reasons.decode(status_of(die_by(signal.SIGTERM)), out_of_memory=True) == "killed by SIGTERM"


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (0, "exited by itself with code 0"),
        (3, "exited with code 3"),
        (ExitCode.MODEL, "the model did not load"),
        (ExitCode.RESOURCES, "out of memory: predict() raised MemoryError, so the process was replaced"),
    ],
)
def test_exit_codes(code: int, line: str) -> None:
    assert exit_reasons.decode(status_of(lambda: os._exit(code)), out_of_memory=False) == line


def test_our_own_reason_comes_first() -> None:
    assert exit_reasons.decode(status_of(die_by(signal.SIGABRT)), True, "predict() hung") == "predict() hung"


# ---------------------------------------------------------------------- cgroups


def tree(root: Path, cgroup: str, files: dict[str, str]) -> str:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return str(root)


V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
V2 = "low 0\nhigh 0\nmax 11\noom 5\noom_kill 4\noom_group_kill 9\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "kills"),
    [
        ("0::/\n", {"sys/fs/cgroup/memory.events": V2}, 4),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.events": V2}, 4),
        ("9:cpu:/a\n4:memory:/a\n0::/\n", {"sys/fs/cgroup/memory/a/memory.oom_control": V1}, 3),
        ("4:cpu,memory:/a\n", {"sys/fs/cgroup/memory/a/memory.oom_control": V1}, 3),
        ("4:memory:/docker/long\n", {"sys/fs/cgroup/memory/memory.oom_control": V1}, 3),
        ("4:memory:/a\n0::/a\n", {
            "sys/fs/cgroup/memory/a/memory.oom_control": V1,
            "sys/fs/cgroup/unified/a/memory.events": V2,
        }, 7),
        ("1:name=systemd:/a:b\n0::/a:b\n", {"sys/fs/cgroup/a:b/memory.events": V2}, 4),
        ("0::/\n", {"sys/fs/cgroup/memory.events": "low 0\n"}, 0),
        ("0::/\n", {}, 0),
        ("", {}, 0),
    ],
)  # fmt: skip
def test_oom_kills_of_both_cgroup_versions(
    tmp_path: Path, cgroup: str, files: dict[str, str], kills: int
) -> None:
    assert exit_reasons.oom_kills(tree(tmp_path, cgroup, files)) == kills


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert exit_reasons.oom_kills(str(tmp_path)) == 0


# ---------------------------------------------------------------------- faulthandler's words

CRASHES = """
import faulthandler, os, signal, sys, threading
faulthandler.enable(int(sys.argv[1]))
started = threading.Semaphore(0)

def background():
    started.release()
    threading.Event().wait()

def predict():
    os.kill(os.getpid(), signal.SIGSEGV)

for _ in range(int(sys.argv[2])):
    threading.Thread(target=background, daemon=True).start()
    started.acquire()
predict()
"""


def crashed(tmp_path: Path, threads: int) -> tuple[str, str]:
    """(what a real interpreter left in its crash file, the folder of the artifact)."""
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "score.py").write_text(CRASHES)
    fd = os.memfd_create("crash")
    try:
        command = [sys.executable, str(artifact / "score.py"), str(fd), str(threads)]
        done = subprocess.run(command, pass_fds=[fd], check=False, timeout=30)
        assert done.returncode == -signal.SIGSEGV
        text = exit_reasons.read_crash(fd)
        assert exit_reasons.read_crash(fd) == "", "it is emptied for the next life"
        os.write(fd, b"next")
        assert exit_reasons.read_crash(fd) == "next", "the next life writes at its beginning"
    finally:
        os.close(fd)
    return text, str(artifact)


def test_the_reason_of_a_crash_names_the_line(tmp_path: Path) -> None:
    text, artifact = crashed(tmp_path, threads=0)
    assert text.startswith("Fatal Python error: Segmentation fault")
    assert exit_reasons.crash_line(text, artifact) == " in predict (score.py:11)"


@pytest.mark.parametrize("threads", [1, 60])
def test_threads_that_merely_wait_are_not_blamed(tmp_path: Path, threads: int) -> None:
    """faulthandler names them first, and many of them fill more than is kept."""
    text, artifact = crashed(tmp_path, threads)
    assert text.startswith("Fatal Python error: Segmentation fault") and "background" in text
    assert len(text) <= exit_reasons.MAX_CRASH
    assert exit_reasons.crash_line(text, artifact) == " in predict (score.py:11)"


def test_outside_of_the_artifact_the_innermost_frame_is_named(tmp_path: Path) -> None:
    frames = ['  File "/lib/a.py", line 3 in f', '  File "/lib/b.py", line 4 in g']
    text = "\n".join(["Current thread 0x1 (most recent call first):", *frames])
    assert exit_reasons.crash_line(text, str(tmp_path)) == " in f (a.py:3)"


@pytest.mark.parametrize("text", ["", "Fatal Python error: Aborted", "\ufffd garbage"])
def test_without_frames_the_reason_names_no_line(text: str) -> None:
    assert exit_reasons.crash_line(text, "/artifact") == ""
