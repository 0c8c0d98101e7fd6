"""What can be known to be wrong before anything is started or replaced.

Touches the log folder, and reads the files that settings name.  It runs at the start, and before a
reload in a process of its own, where it also shows that the new program can be loaded at all.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from twofold.errors import ResourceError
from twofold.loadbalancer.access import authorization, tls
from twofold.loadbalancer.config import Config
from twofold.loadbalancer.control import discovery
from twofold.loadbalancer.supervision.resources import ChildEntries


def verify(config: Config) -> None:
    """Raises TwofoldError for what the settings alone do not show."""
    _make_log_folder(config.log.log_dir)
    authorization.Authorization(config)
    if config.listen.tls_certificate:
        tls.Certificates(config.listen)
    if config.pool.upstream_file:
        file = Path(config.pool.upstream_file)
        discovery.parse_file(file.read_text("utf-8", "replace"), str(file))


def load(lives: ChildEntries) -> None:
    """Import what the children will, so that a program that cannot run never replaces one that does."""
    for module in lives.modules:
        importlib.import_module(module)


def _make_log_folder(path: str) -> None:
    if not path:
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        os.close(os.open(Path(path) / "access.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640))
    except OSError as error:
        remedy = "choose another log_dir, or none for standard output"
        raise ResourceError(f"cannot write logs: {error.strerror}", remedy, path) from None
