"""The compiled form of the hot path: its modules, its folder, and the check whether it is current.

Reads the sources and changes the import paths of packages.  Standard library only, because it runs before
every other import.  mypyc compiles the same typed Python (`python -m twofold.native.build`); without a
compiled form, the source is interpreted.

Compiled modules are used only if they were made from exactly the present source, so an edited file takes
effect at once.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).parents[1]  # the folder of `twofold`
SWITCH = "TWOFOLD_INTERPRETED"  # environment variable; if not empty, the compiled form is not used
MARK = "source"  # the file that holds the digest of the source
GROUP = "twofold.hot"  # mypyc puts the code that the compiled modules share into GROUP__mypyc

# The modules of the load balancer's request path and tick, by package.
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
    """The folder of the compiled form for this interpreter and machine."""
    return PACKAGE / "_native" / str(sysconfig.get_config_var("SOABI"))


def source(package: Path = PACKAGE) -> str:
    """A digest of the sources that compiled modules depend on: the foundation and the load balancer."""
    digest = hashlib.blake2b(sys.version.encode(), digest_size=16)
    # Listed by name: in a checkout the load balancer is a symlink, which rglob() does not follow.
    rooms = [room for room in package.iterdir() if room.name not in ("server", "_native")]
    for room in sorted(rooms):
        for path in sorted(room.rglob("*.py")) if room.is_dir() else [room]:
            if path.suffix == ".py":
                digest.update(b"%b\0%b\0" % (str(path.relative_to(package)).encode(), path.read_bytes()))
    return digest.hexdigest()


def fresh() -> bool:
    """Whether the compiled form was made from exactly this source."""
    try:
        return (folder() / MARK).read_bytes() == source().encode()
    except OSError:
        return False


def prefer() -> None:
    """Make imports find the compiled modules, if they are current and no hot module is imported yet."""
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
