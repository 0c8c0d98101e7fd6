"""The capacity of this machine: the number of replicas, and the number of threads of each.

Arithmetic over three probes: cores, GPUs, memory.  Touches /proc, /sys/fs/cgroup and /dev below `root`, read
only; tests replace `root`.  Of all limits from this process's cgroup up to the root, v1 or v2, the strictest
one counts.  Standard library only.
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

THREADS_PER_OCPU = 2  # an x86 OCPU is a core with two hardware threads; each thread runs one replica
HEADROOM = 0.9  # share of the free memory that is planned: a replica grows while it predicts

# Sizes of the thread pools of numerical libraries, which by default are as large as the machine.
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
    "TWOFOLD_THREADS",  # read by replica/onnx_threads.py: onnxruntime reads no variable
)

MOST_REPLICAS = 192  # with at most 64 spares they use all mailboxes of an instance


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The processes to start. `gpus`: a device or None for each replica; `reason`: of the number."""

    replicas: int
    threads: int
    gpus: tuple[str | None, ...]
    reason: str


def plan(settings: ReplicaSettings, cores: float, gpus: list[str]) -> CapacityPlan:
    """One replica for each GPU, else one for each hardware thread, unless the settings give a number."""
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
    """(number of replicas that fit into memory, why it is less than planned or "").

    `first_replica`: bytes of the replica that runs; `available`: free bytes beside it.
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
    """Environment variables that limit a process to `threads`; variables of the user have priority."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"TF_NUM_INTEROP_THREADS": "1"}


# ---------------------------------------------------------------------- probes


def visible_gpus(environ: Mapping[str, str], root: str = "/") -> list[str]:
    """Devices as CUDA_VISIBLE_DEVICES names them: its own entries, or the numbers of /dev/nvidiaN."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        devices = []
        for device in environ["CUDA_VISIBLE_DEVICES"].split(","):
            if not re.fullmatch(r"\d+|(GPU|MIG)-.+", device.strip()):
                break  # CUDA ignores the first invalid entry and all that follow
            devices.append(device.strip())
        return devices
    try:
        names = os.listdir(Path(root, "dev"))
    except OSError:
        return []
    numbers = sorted(int(name[6:]) for name in names if re.fullmatch(r"nvidia\d+", name))
    return [str(number) for number in numbers]


def cores(root: str = "/") -> float:
    """Hardware threads for this process: its affinity, limited by the quotas of its cgroup and all above."""
    limits = [float(len(os.sched_getaffinity(0)))]
    for folder in _cgroups(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        limits += _ratio(quota, period)
    for folder in _cgroups(root, "cpu"):
        limits += _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))
    return min(limits)


def memory_available(root: str = "/") -> int:
    """Free bytes without swapping: the machine's, limited by this process's cgroup and those above."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(Path(root, "proc/meminfo")), re.MULTILINE)
    free = [int(found[1]) * 1024] if found else []
    for folder in _cgroups(root, ""):
        free += _room(folder, "memory.max", "memory.current", "inactive_file")
    for folder in _cgroups(root, "memory"):
        free += _room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return max(0, min(free, default=1 << 62))


def _cgroups(root: str, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of all above it; the v2 hierarchy has no controller."""
    for line in _text(Path(root, "proc/self/cgroup")).splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(","):
            continue
        top = Path(root, "sys/fs/cgroup")
        # v1 mounts by controller; v2 at the top, or beside v1 as `unified`.
        for mount in (top / names, top / controller) if controller else (top, top / "unified"):
            # In a container the path may be the host's and not exist here.  Then the mount's own folder,
            # which comes last, is the cgroup of this process.
            below = Path(path.lstrip("/"))
            for folder in (below, *below.parents):
                if (mount / folder).is_dir():
                    yield mount / folder


def _room(folder: Path, limit_file: str, usage_file: str, cache: str) -> list[int]:
    limit, usage = _text(folder / limit_file), _text(folder / usage_file)
    if not (limit.isdigit() and usage.isdigit()):
        return []  # no limit ("max"), or no such controller
    reclaimable = re.search(rf"^{cache} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    return [int(limit) - int(usage) + (int(reclaimable[1]) if reclaimable else 0)]


def _ratio(quota: str, period: str) -> list[float]:
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() and int(period) else []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # the kernel or the container has no such controller


def many(count: float, noun: str) -> str:
    """ "1 replica", "2 replicas"."""
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"
