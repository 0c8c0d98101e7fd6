"""Processor, kernel and versions of a run.  Reads /proc and installed metadata only."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import timeit
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.environments import pins
from bench.load import find_wrk

OURS = ("uvloop", "orjson", "starlette", "numpy", "scikit-learn")
PEER_PACKAGES = {
    "uvicorn": ("uvicorn", "starlette", "uvloop", "httptools"),
    "gunicorn": ("gunicorn", "fastapi", "pydantic", "uvloop"),
    "mosec": ("mosec", "orjson"),
    "litserve": ("litserve", "fastapi", "uvicorn"),
    "triton": ("nvidia-pytriton", "numpy", "orjson"),
}


def describe() -> dict[str, str]:
    memory = int(_line("/proc/meminfo", r"MemTotal:\s+(\d+)")) / 1024**2
    return {
        "processor": _line("/proc/cpuinfo", r"model name\s*: (.*)") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GB",
        "kernel": platform.release().split("-")[0],
        "system": _line("/etc/os-release", r'PRETTY_NAME="(.*)"'),
        "python": platform.python_version(),
        "load generator": _wrk_version(),
        "a fixed Python loop": f"{_loop_ms():.1f} ms (tells a fast hour of a shared machine from a slow one)",
    }


def label() -> str:
    """A short name for file names: processor and cores."""
    words = re.sub(r"[^a-z0-9]+", "-", describe()["processor"].lower()).strip("-")
    return f"{words[:40]}-{len(os.sched_getaffinity(0))}-cores"


def versions(environments: set[str]) -> dict[str, str]:
    """Server -> its packages with versions, for those that took part."""
    found = {"twofold": ", ".join(_installed(name) for name in ("twofold", *OURS))}
    for peer in sorted(environments):
        pinned = pins(peer)
        found[peer] = ", ".join(f"{name} {pinned[name]}" for name in PEER_PACKAGES[peer])
    return found


def _loop_ms() -> float:
    """Best of five, milliseconds of this interpreter adding up a million numbers."""
    return min(timeit.repeat("sum(range(1_000_000))", number=1, repeat=5)) * 1000


def _installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} missing in {Path(sys.prefix).name}"


def _wrk_version() -> str:
    said = subprocess.run([find_wrk(), "-v"], capture_output=True, text=True, timeout=10)
    return " ".join((said.stdout or said.stderr).split()[:2])


def _line(path: str, pattern: str) -> str:
    match = re.search(pattern, Path(path).read_text())
    return match.group(1) if match else ""
