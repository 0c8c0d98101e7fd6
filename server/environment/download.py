"""`python -P download.py URL FILE KNOWN`: download URL into FILE unless its identity equals KNOWN.

A separate process, started by path: object store libraries bring threads, event loops and tens of
megabytes, which the supervisor must not have when it forks.  Imports no other module of twofold.  Touches
FILE and the network.  Writes JSON lines to standard output: {"done","total"} as progress, and last one of

    {"identity"}            unchanged: the identity equals KNOWN, and nothing was downloaded
    {"identity","digest"}   downloaded; the SHA-256 of FILE
    {"error","fault"}       failed; the fault is "disk", "package", or "" for the store and the network

The identity is a hash of the store's metadata about the object, if a field of CHANGING is in it.  Otherwise
the identity is empty, and never equals KNOWN.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

CHANGING = {  # metadata fields that change with the content
    "etag",
    "last-modified",
    "lastmodified",
    "last_modified",
    "mtime",
    "timemodified",
    "md5",
    "content-md5",
}
SILENCE_S = 60.0  # an HTTP download without a byte for this long fails
STEP = 4 << 20  # bytes between two reports
DISK_RESERVE = 64 << 20


def report(**fields: object) -> None:
    """Write one JSON line."""
    print(json.dumps(fields), flush=True)


def options(url: str) -> dict[str, Any]:
    """Options of the filesystem for this URL."""
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    # aiohttp's default limit is five minutes for a whole download.
    return {
        "client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)}
    }


def identity_of(info: dict[str, Any]) -> str:
    """The identity of an object with the metadata `info`; empty if no field changes with the content."""
    if not any(str(name).lower() in CHANGING and value for name, value in info.items()):
        return ""
    text = json.dumps(info, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def fetch(url: str, file: Path, known: str) -> None:
    """Download `url` into `file` unless its identity is `known`. Raises OSError, ImportError and others."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url, **options(url))
    info = filesystem.info(path)
    identity = identity_of(info)
    if identity and identity == known:
        report(identity=identity)
        return
    size, free = int(info.get("size") or 0), shutil.disk_usage(file.parent).free
    if size + DISK_RESERVE > free:
        raise OSError(
            errno.ENOSPC, f"{size / 1e6:.0f} MB do not fit on the disk, where {free / 1e6:.0f} MB are free"
        )

    class Progress(fsspec.callbacks.Callback):  # type: ignore[misc]
        reported = 0

        def call(self, hook_name: str | None = None, **more: object) -> None:
            if self.value - self.reported >= STEP:
                self.reported = self.value
                report(done=self.value, total=self.size or size)

    filesystem.get_file(path, str(file), callback=Progress())
    with file.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    report(identity=identity, digest=digest)


def main() -> None:
    """Run with the arguments of the command line; every outcome is reported."""
    url, file, known = sys.argv[1:]
    try:
        fetch(url, Path(file), known)
    except ImportError as error:
        report(error=str(error), fault="package")
    except Exception as error:  # each store library has exceptions of its own
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # The error of fsspec often has only the address; its cause has the reason.
        reasons = [str(part).strip() or type(part).__name__ for part in (error, error.__cause__) if part]
        report(error=": ".join(reasons), fault="disk" if full else "")


if __name__ == "__main__":
    main()
