"""How many replicas this machine can carry, and how many threads each may use.

Arithmetic over three probes: cores, GPUs, memory.  The probes read /proc, /sys/fs/cgroup and /dev
below `root`, which tests replace; they believe the strictest limit they find on the way from our
own cgroup up to the root, for cgroup v1 and v2 alike.  Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twofold.server.config import ReplicaSettings

THREADS_PER_OCPU = 2  # an x86 OCPU is a core with two hardware threads, and each carries one replica
HEADROOM = 0.9  # of the free memory: a replica grows while it predicts

# Every pool of threads that a numerical library would otherwise make as large as the machine.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TWOFOLD_THREADS",  # for onnxruntime, which reads no variable: replica/threads.py does
)

MOST_REPLICAS = 192  # with up to 64 spares they fill the mailboxes of an instance


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """What to start. `gpus` names a device for each replica, or None; `reason` says why so many."""

    replicas: int
    threads: int
    gpus: tuple[str | None, ...]
    reason: str


def plan(settings: ReplicaSettings, cores: float, gpus: list[str]) -> CapacityPlan:
    """One replica for each GPU, otherwise one for each hardware thread; the settings win over both."""
    share = min(cores, THREADS_PER_OCPU * settings.ocpus) if settings.ocpus else cores
    if settings.replicas:
        count, reason = settings.replicas, "as the setting `replicas` says"
    elif settings.ocpus:
        count = max(1, round(THREADS_PER_OCPU * settings.ocpus))
        reason = f"two for each of {many(settings.ocpus, 'OCPU')}"
    elif gpus:
        count, reason = len(gpus), "one for each GPU"
    else:
        count, reason = max(1, int(cores)), f"two for each of {many(cores / THREADS_PER_OCPU, 'OCPU')}"
    if count > MOST_REPLICAS:
        count, reason = MOST_REPLICAS, "the most that one instance holds"
    threads = settings.threads or max(1, int(share / count))
    devices = tuple(gpus[index % len(gpus)] if gpus else None for index in range(count))
    return CapacityPlan(
        count, threads, devices, f"{many(count, 'replica')} ({reason}), {many(threads, 'thread')} each"
    )


def fit(wanted: CapacityPlan, first_replica: int, available: int) -> tuple[int, str]:
    """(replicas that memory carries, why they are fewer than planned or "").

    `first_replica`: bytes that the replica already running holds; `available`: bytes left beside it.
    """
    more = int(available * HEADROOM / max(1, first_replica))
    fitting = min(wanted.replicas, 1 + max(0, more))
    if fitting == wanted.replicas:
        return fitting, ""
    return fitting, (
        f"memory is enough for {fitting} of {many(wanted.replicas, 'replica')}: "
        f"each takes {first_replica / 1e6:.0f} MB and {available / 1e6:.0f} MB are left"
    )


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables that hold a process to `threads`; what a user has set is to win over them."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"TF_NUM_INTEROP_THREADS": "1"}


# ---------------------------------------------------------------------- probes


def visible_gpus(environ: Mapping[str, str], root: str = "/") -> list[str]:
    """Names as CUDA_VISIBLE_DEVICES takes them: its own entries, or the numbers of /dev/nvidiaN."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        devices = []
        for device in environ["CUDA_VISIBLE_DEVICES"].split(","):
            if not re.fullmatch(r"\d+|(GPU|MIG)-.+", device.strip()):
                break  # CUDA, too, sees nothing from the first entry on that is no device
            devices.append(device.strip())
        return devices
    try:
        names = os.listdir(Path(root, "dev"))
    except OSError:
        return []
    numbers = sorted(int(name[6:]) for name in names if re.fullmatch(r"nvidia\d+", name))
    return [str(number) for number in numbers]


def cores(root: str = "/") -> float:
    """Hardware threads that we may keep busy at once: affinity, cut by the quota of any cgroup above us."""
    limits = [float(len(os.sched_getaffinity(0)))]
    for folder in _cgroups(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        limits += _ratio(quota, period)
    for folder in _cgroups(root, "cpu"):
        limits += _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))
    return min(limits)


def memory_available(root: str = "/") -> int:
    """Bytes that can be had without swapping: the machine's, cut by the limit of any cgroup above us."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(Path(root, "proc/meminfo")), re.MULTILINE)
    free = [int(found[1]) * 1024] if found else []
    for folder in _cgroups(root, ""):
        free += _room(folder, "memory.max", "memory.current", "inactive_file")
    for folder in _cgroups(root, "memory"):
        free += _room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return max(0, min(free, default=1 << 62))


def _cgroups(root: str, controller: str) -> Iterator[Path]:
    """Our cgroup's folder and those above it; the v2 hierarchy is the one without a controller."""
    for line in _text(Path(root, "proc/self/cgroup")).splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(","):
            continue
        top = Path(root, "sys/fs/cgroup")
        # v1 mounts by controller; v2 at the top, or beside v1 as `unified`.
        for mount in (top / names, top / controller) if controller else (top, top / "unified"):
            # In a container the path may be the host's and not exist here: then the mount's own
            # folder, which comes last, is ours.
            below = Path(path.lstrip("/"))
            for folder in (below, *below.parents):
                if (mount / folder).is_dir():
                    yield mount / folder


def _room(folder: Path, limit_file: str, usage_file: str, cache: str) -> list[int]:
    limit, usage = _text(folder / limit_file), _text(folder / usage_file)
    if not (limit.isdigit() and usage.isdigit()):
        return []  # no limit here ("max"), or no such controller
    reclaimable = re.search(rf"^{cache} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    return [int(limit) - int(usage) + (int(reclaimable[1]) if reclaimable else 0)]


def _ratio(quota: str, period: str) -> list[float]:
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() and int(period) else []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # absent where the kernel, or the container, has no such controller


def many(count: float, noun: str) -> str:
    """ "1 replica", "2 replicas"."""
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"
