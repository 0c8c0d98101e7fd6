"""The compiled form of the hot path: which modules it has, where it lies, and whether it may be used.

Reads the sources and changes where Python looks for them.  Standard library only, because it runs
before every other import.  mypyc makes machine code of the same typed Python (`python -m
twofold.native.build`); where nothing has been compiled, that Python is interpreted.

A compiled module is used only while it was made from the source beside it, to the last byte: an edited
file runs as it is written.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).parents[1]  # the folder of `twofold`
SWITCH = "TWOFOLD_INTERPRETED"  # a variable; not empty: leave the compiled form alone
MARK = "source"  # the file that holds the digest of the source
GROUP = "twofold.hot"  # mypyc puts what the compiled modules share into GROUP__mypyc

# The way of a request through the load balancer, and the arithmetic of a tick; by package.
HOT = {
    "twofold.wire": ("chunked", "head_memo", "refusal", "request_ids"),
    "twofold.reactor": ("reactor", "transport"),
    "twofold.logs": ("journal", "records"),
    "twofold.shm": ("json_page",),
    "twofold.telemetry": ("counters", "histograms"),
    "twofold.loadbalancer": ("request_counts", "shared_memory"),
    "twofold.loadbalancer.proxy": (
        "admission", "client", "connection_limit", "downstream", "exchange", "paced_writer", "process",
        "response", "router", "services", "timeouts", "upload", "upstream", "upstream_pool",
    ),
    "twofold.loadbalancer.http": ("error_responses", "request_plan", "response_head"),
    "twofold.loadbalancer.balancing": (
        "candidates", "instance", "instance_pool", "retry_budget", "wait_queue",
    ),
    "twofold.loadbalancer.bandwidth": ("fair_queue", "fair_share", "lease", "limiter", "token_bucket"),
}  # fmt: skip


def folder() -> Path:
    """The compiled form for this interpreter and machine; other interpreters have theirs beside it."""
    return PACKAGE / "_native" / str(sysconfig.get_config_var("SOABI"))


def source(package: Path = PACKAGE) -> str:
    """A digest of all that a compiled module may rely on: the foundation and the load balancer."""
    digest = hashlib.blake2b(sys.version.encode(), digest_size=16)
    # By name: in a checkout the load balancer is a link, which rglob() does not enter.
    rooms = [room for room in package.iterdir() if room.name not in ("server", "_native")]
    for room in sorted(rooms):
        for path in sorted(room.rglob("*.py")) if room.is_dir() else [room]:
            if path.suffix == ".py":
                digest.update(b"%b\0%b\0" % (str(path.relative_to(package)).encode(), path.read_bytes()))
    return digest.hexdigest()


def fresh() -> bool:
    """Whether there is a compiled form of exactly this source."""
    try:
        return (folder() / MARK).read_bytes() == source().encode()
    except OSError:
        return False


def prefer() -> None:
    """Let imports find the compiled modules first, if there are any and no hot module was imported yet."""
    names = {f"{package}.{name}" for package, names in HOT.items() for name in names}
    if os.environ.get(SWITCH) or names & sys.modules.keys() or not fresh():
        return
    packages = [importlib.import_module(package) for package in ("twofold", *HOT)]
    for package in packages:
        package.__path__.insert(0, _place(package.__name__))
    try:
        importlib.import_module(f"{GROUP}__mypyc")
    except ImportError as error:
        for package in packages:
            package.__path__.remove(_place(package.__name__))
        print(
            f"twofold: the compiled form cannot be loaded, so the source is interpreted: {error}",
            file=sys.stderr,
        )


def _place(package: str) -> str:
    return str(folder().joinpath(*package.split(".")))


def used() -> bool:
    """Whether this process runs the compiled form."""
    return f"{GROUP}__mypyc" in sys.modules
