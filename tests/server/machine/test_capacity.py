"""Planning replicas: the arithmetic, and the probes over made-up /proc, /sys and /dev trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from twofold.server.config import ReplicaSettings
from twofold.server.machine import capacity

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000 kB\nMemAvailable:    8000000 kB\n"
REAL_CORES = float(len(os.sched_getaffinity(0)))


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(root)


V2 = {"proc/self/cgroup": "0::/app/inner"}
V1 = {"proc/self/cgroup": "7:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc"}


def test_no_cgroup_leaves_affinity_and_the_machines_memory(tmp_path: Path) -> None:
    root = tree(tmp_path, {})
    assert capacity.cores(root) == REAL_CORES
    assert capacity.memory_available(root) == 8_000_000 * 1024


def test_v2_takes_the_strictest_limit_on_the_way_up(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        V2
        | {
            "sys/fs/cgroup/app/inner/cpu.max": "max 100000",
            "sys/fs/cgroup/app/cpu.max": "50000 100000",
            "sys/fs/cgroup/app/inner/memory.max": "max",
            "sys/fs/cgroup/app/memory.max": str(2 << 30),
            "sys/fs/cgroup/app/memory.current": str(1 << 30),
            "sys/fs/cgroup/app/memory.stat": f"anon 5\ninactive_file {256 << 20}\nactive_file 7",
        },
    )
    assert capacity.cores(root) == 0.5
    assert capacity.memory_available(root) == (1 << 30) + (256 << 20)


def test_v2_in_a_container_of_its_own_is_the_mounts_root(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/cpu.max": "75000 100000",
            "sys/fs/cgroup/memory.max": "1000",
            "sys/fs/cgroup/memory.current": "400",
        },
    )
    assert capacity.cores(root) == 0.75
    assert capacity.memory_available(root) == 600


def test_v1_with_the_hosts_path_that_is_not_mounted_here(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        V1
        | {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "25000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "4000",
            "sys/fs/cgroup/memory/memory.stat": "cache 9\ntotal_inactive_file 500",
        },
    )
    assert capacity.cores(root) == 0.5
    assert capacity.memory_available(root) == 1500


def test_v1_without_limits(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        V1
        | {
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "4000",
        },
    )
    assert capacity.cores(root) == REAL_CORES
    assert capacity.memory_available(root) == 8_000_000 * 1024


def test_a_cgroup_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/app/memory.max": "10", "sys/fs/cgroup/app/memory.current": "50"}
    assert capacity.memory_available(tree(tmp_path, V2 | files)) == 0


def test_this_machine_answers_something_sane() -> None:
    assert 0 < capacity.cores() <= REAL_CORES
    assert 1 << 20 < capacity.memory_available() < 1 << 50


@pytest.mark.parametrize(
    ("variable", "devices"),
    [
        ("0,1", ["0", "1"]),
        (" 2 , GPU-8932f937 ", ["2", "GPU-8932f937"]),
        ("MIG-4a3f,1", ["MIG-4a3f", "1"]),
        ("0,-1,1", ["0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_gpus_from_the_variable(variable: str, devices: list[str]) -> None:
    assert capacity.visible_gpus({"CUDA_VISIBLE_DEVICES": variable}) == devices


def test_gpus_from_the_device_nodes(tmp_path: Path) -> None:
    root = tree(
        tmp_path, {f"dev/{name}": "" for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "null")}
    )
    assert capacity.visible_gpus({}, root) == ["2", "10"]
    assert capacity.visible_gpus({}, str(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(
    ("settings", "cores", "gpus", "replicas", "threads"),
    [
        (ReplicaSettings(), 2.0, [], 2, 1),
        (ReplicaSettings(), 0.5, [], 1, 1),
        (ReplicaSettings(), 3.7, [], 3, 1),
        (ReplicaSettings(replicas=2), 8.0, [], 2, 4),
        (ReplicaSettings(ocpus=2.0), 16.0, [], 4, 1),
        (ReplicaSettings(ocpus=2.0, replicas=1), 16.0, [], 1, 4),
        (ReplicaSettings(ocpus=4.0), 2.0, [], 8, 1),
        (ReplicaSettings(), 16.0, ["0", "1"], 2, 8),
        (ReplicaSettings(threads=3), 2.0, [], 2, 3),
    ],
)
def test_plan(settings: ReplicaSettings, cores: float, gpus: list[str], replicas: int, threads: int) -> None:
    plan = capacity.plan(settings, cores, gpus)
    assert (plan.replicas, plan.threads) == (replicas, threads)
    assert len(plan.gpus) == replicas
    assert str(replicas) in plan.reason


def test_singular_and_plural() -> None:
    reason = capacity.plan(ReplicaSettings(), 2.0, []).reason
    assert reason == "2 replicas (two for each of 1 OCPU), 1 thread each"
    assert capacity.plan(ReplicaSettings(ocpus=0.5), 1.0, []).reason.endswith("0.5 OCPUs), 1 thread each")


def test_gpus_go_round() -> None:
    assert capacity.plan(ReplicaSettings(replicas=3), 8, ["4", "6"]).gpus == ("4", "6", "4")
    assert capacity.plan(ReplicaSettings(), 2, []).gpus == (None, None)


def test_memory_cuts_the_plan_and_says_so() -> None:
    plan = capacity.plan(ReplicaSettings(replicas=8), 2, [])
    assert capacity.fit(plan, 100, 10_000) == (8, "")
    fitting, reason = capacity.fit(plan, 1_000_000_000, 2_500_000_000)
    assert fitting == 3
    assert "3 of 8 replicas" in reason and "1000 MB" in reason and "2500 MB" in reason
    assert capacity.fit(plan, 1_000_000_000, 0)[0] == 1, "the one that runs already stays"
    assert capacity.fit(plan, 0, 1000) == (8, "")


def test_thread_variables_name_every_pool() -> None:
    variables = capacity.thread_variables(3)
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == variables["TWOFOLD_THREADS"] == "3"
    assert variables["TF_NUM_INTEROP_THREADS"] == "1"
