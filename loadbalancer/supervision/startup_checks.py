"""What can be known to be wrong before anything is started or replaced.

Touches the log folder, and reads the files that settings name.  It runs at the start, and before a
reload in a process of its own, where it also shows that the new program can be loaded at all.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from twofold.loadbalancer.access import authorization, tls
from twofold.loadbalancer.config import Config
from twofold.loadbalancer.control import discovery
from twofold.loadbalancer.supervision.resources import ChildEntries
from twofold.logs import sinks


def verify(config: Config) -> None:
    """Raises TwofoldError for what the settings alone do not show."""
    sinks.require_folder(config.log.log_dir, ("access",))
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
