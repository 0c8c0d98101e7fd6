"""Checks of the settings before anything is started or replaced.

Touches the log folder, and reads the files that settings name.  Runs at the start, and in the reload check,
which also verifies that the new program can be imported.
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
    """Check the files and folders that the settings name. Raises TwofoldError."""
    sinks.require_folder(config.log.log_dir, ("access",))
    authorization.Authorization(config)
    if config.listen.tls_certificate:
        tls.Certificates(config.listen)
    if config.pool.upstream_file:
        file = Path(config.pool.upstream_file)
        discovery.parse_file(file.read_text("utf-8", "replace"), str(file))


def load(lives: ChildEntries) -> None:
    """Import the children's modules, so that a program that cannot be imported is not started."""
    for module in lives.modules:
        importlib.import_module(module)
