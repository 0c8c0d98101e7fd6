"""Binds a Unix socket to a path, and replaces the file of a killed process.

Touches that file.
"""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path


def bind_to_path(listener: socket.socket, path: str) -> None:
    """Bind `listener`; a socket file without a listening process is removed first. Raises OSError."""
    try:
        listener.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _abandoned(path):
            raise
        Path(path).unlink()
        listener.bind(path)


def _abandoned(path: str) -> bool:
    """Whether the path is a socket without a listening process."""
    if not stat.S_ISSOCK(Path(path).stat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == errno.ECONNREFUSED
