"""`python -P server/fetch.py URL FILE KNOWN`: download URL into FILE, unless it is still as KNOWN says.

A process of its own, started by path: object store libraries bring threads, event loops and tens of
megabytes, which the supervisor must not have when it forks.  Imports nothing of ours.  Answers with
JSON lines on standard output: {"done","total"} now and then, and last one of

    {"identity"}            unchanged: the identity equals KNOWN, and nothing was downloaded
    {"identity","digest"}   downloaded; the SHA-256 of FILE
    {"error","fault"}       failed; the fault is "disk", "package", or "" for the store and the way to it

The identity is everything that the store says about the object, if that includes something which
changes with the content; otherwise it is empty, and equals nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

CHANGING = {
    "etag",
    "last-modified",
    "lastmodified",
    "last_modified",
    "mtime",
    "timemodified",
    "md5",
    "content-md5",
}
SILENCE = 60.0  # seconds without a byte before an HTTP download is given up
STEP = 4 << 20  # bytes between two reports
DISK_RESERVE = 64 << 20


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def options(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    # aiohttp's own limit is five minutes for a whole download.
    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)}}


def identity_of(info: dict[str, Any]) -> str:
    if not any(str(name).lower() in CHANGING and value for name, value in info.items()):
        return ""
    text = json.dumps(info, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def fetch(url: str, file: Path, known: str) -> None:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url, **options(url))
    info = filesystem.info(path)
    identity = identity_of(info)
    if identity and identity == known:
        say(identity=identity)
        return
    size, free = int(info.get("size") or 0), shutil.disk_usage(file.parent).free
    if size + DISK_RESERVE > free:
        raise OSError(
            errno.ENOSPC, f"{size / 1e6:.0f} MB do not fit on the disk, where {free / 1e6:.0f} MB are free"
        )

    class Report(fsspec.callbacks.Callback):  # type: ignore[misc]
        said = 0

        def call(self, hook_name: str | None = None, **more: object) -> None:
            if self.value - self.said >= STEP:
                self.said = self.value
                say(done=self.value, total=self.size or size)

    filesystem.get_file(path, str(file), callback=Report())
    with file.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    say(identity=identity, digest=digest)


def main() -> None:
    url, file, known = sys.argv[1:]
    try:
        fetch(url, Path(file), known)
    except ImportError as error:
        say(error=str(error), fault="package")
    except Exception as error:  # every store has its own; the text is for the user
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # fsspec often says no more than the address, and the cause says why.
        reasons = [str(part).strip() or type(part).__name__ for part in (error, error.__cause__) if part]
        say(error=": ".join(reasons), fault="disk" if full else "")


if __name__ == "__main__":
    main()
