"""The reason of a process's end, in one line: from the exit status, cgroup counters and faulthandler's dump.

Touches crash files; reads /proc and /sys/fs/cgroup.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from twofold.errors import ExitCode
from twofold.process.exit_status import how
from twofold.server.artifact.diagnostics import CRASH, REMEDIES, SLOW
from twofold.server.supervision.reports import LoadFailureReport

MAX_DUMP = 65536  # bytes of a faulthandler dump that are read: it may list many threads
MAX_CRASH = 4000  # characters of a dump that are passed on
CURRENT = "Current thread"
FAILURES = {
    "import": "score.py does not import",
    "signature": "score.py does not fit the contract",
    "load": "load_model() failed",
    "sample": "the sample request failed",
}


def oom_kills(root: str = "/") -> int:
    """Number of OOM kills in the cgroup of this process (v2, else v1); 0 if unknown."""
    base = Path(root)
    try:
        lines = (base / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    total = 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files = [f"sys/fs/cgroup{path}/memory.events", f"sys/fs/cgroup/unified{path}/memory.events"]
        elif "memory" in controllers.split(","):
            files = [
                f"sys/fs/cgroup/memory{path}/memory.oom_control",
                "sys/fs/cgroup/memory/memory.oom_control",
            ]
        else:
            continue
        for file in files:
            found = _counter(base / file.lstrip("/"))
            if found is not None:
                total += found
                break
    return total


def _counter(file: Path) -> int | None:
    try:
        text = file.read_text()
    except OSError:
        return None
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found.group(1)) if found else None


def decode(status: int, out_of_memory: bool, cause: str = "") -> str:
    """One line for a wait status. `cause`: the reason of the supervisor, if it killed the process itself."""
    if cause:
        return cause
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and out_of_memory:
            return "out of memory: killed by the kernel (cgroup oom_kill)"
        if number == signal.SIGKILL:
            return "killed by SIGKILL from outside (an operator, or the machine ran out of memory)"
        return how(-number)
    code = os.WEXITSTATUS(status)
    if code == ExitCode.RESOURCES:
        return "out of memory: predict() raised MemoryError, so the process was replaced"
    if code == ExitCode.MODEL:
        return "the model did not load"
    return how(code) if code else "exited by itself with code 0"


def load_failure(report: LoadFailureReport) -> str:
    """The reported reason, with its traceback, of a model that did not load."""
    return f"{FAILURES.get(report.stage, report.stage)}: {report.error.strip()}"


def remedy(reason: str) -> str:
    """The advice for a model that did not load; `reason` is a result of decode() or load_failure()."""
    stage = next((stage for stage, text in FAILURES.items() if reason.startswith(text)), "")
    advice = REMEDIES.get(stage) or (SLOW if "did not load within" in reason else CRASH)
    return f"{advice}; `twofold check` tries it without serving"


def read_crash(fd: int) -> str:
    """The faulthandler dump in a replica's crash file. Empties the file for the next process."""
    text = os.pread(fd, MAX_DUMP, 0).decode("utf-8", "replace")
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)  # the offset is shared with the next process
    others, current, crashed = text.partition(CURRENT)
    if current:  # the crashed thread is listed last, and must survive the cut below
        fatal, _, others = others.partition("\n\n")
        text = f"{fatal}\n\n{current}{crashed}\n\n{others}"
    return text[:MAX_CRASH].strip()


def crash_line(text: str, artifact: str) -> str:
    """The place of a crash: the innermost frame of the artifact in the dump, else the innermost frame.

    If the dump names the crashed thread, only the frames of that thread count.
    """
    _, current, crashed = text.partition(CURRENT)
    frames = re.findall(
        r'File "([^"]+)", line (\d+) in (\S+)', crashed.partition("\n\n")[0] if current else text
    )
    frames.sort(
        key=lambda frame: not frame[0].startswith(artifact)
    )  # stable sort: the innermost frame stays first
    if not frames:
        return ""
    file, line, function = frames[0]
    return f" in {function} ({Path(file).name}:{line})"
