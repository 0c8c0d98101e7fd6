"""The source of a conda-pack archive, and the hash of its content.

A location is a local path or a URL that fsspec supports.  With `oci_root`, `oci://BUCKET@NAMESPACE/PATH` is
a local file.  A record keeps the hash together with the identity of that version of the archive: inode and
times of a file, or the metadata of the store.  An unchanged archive is neither read nor downloaded again.

Touches the cache folder and the archive; starts download.py for URLs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from twofold.errors import EnvironmentFailure, ResourceError, TwofoldError
from twofold.server.archive.cache import Cache

ArchiveProgress = Callable[[str, int, int], None]  # current step, bytes done, total bytes (0: unknown)

CHUNK = 1 << 20
FETCH = Path(__file__).with_name("download.py")
PACKAGES = {"oci": "twofold[oci]", "s3": "twofold[s3]", "http": "twofold[https]", "https": "twofold[https]"}


@dataclass(frozen=True, slots=True)
class ArchiveLocation:
    """The name that the user gave, and what it stands for: a local path (file or folder) or a URL."""

    named: str
    local: Path | None
    url: str = ""


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """The identity of one version of an archive, and the SHA-256 of its content."""

    identity: str
    digest: str


def locate(named: str, oci_root: str) -> ArchiveLocation:
    """The location that `named` stands for. Raises EnvironmentFailure if it is invalid or needs a package."""
    scheme, separator, rest = named.partition("://")
    if not separator:
        return ArchiveLocation(named, Path(named).expanduser().absolute())
    if scheme == "file":
        return ArchiveLocation(named, Path(unquote(urlsplit(named).path)))
    if scheme == "oci":
        if oci_root:
            return ArchiveLocation(named, _mapped(named, rest, oci_root))
        if not _installed("ocifs"):
            raise EnvironmentFailure(
                f"{named} is in an object store, and ocifs, which reads it, is not installed",
                "name a local copy with --env, or a folder that stands for the store with --oci-root, "
                "or install twofold[oci]",
            )
    return ArchiveLocation(named, None, named)


def _mapped(named: str, rest: str, oci_root: str) -> Path:
    """oci://BUCKET@NAMESPACE/PATH -> OCI_ROOT/BUCKET/PATH"""
    bucket, _, path = rest.partition("/")
    bucket = bucket.partition("@")[0]
    if not bucket or not path or ".." in (bucket, *path.split("/")):
        raise EnvironmentFailure(f"{named} is no object's address", "write oci://BUCKET@NAMESPACE/PATH")
    return Path(oci_root).expanduser().absolute() / bucket / path


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


@contextmanager
def archive(
    location: ArchiveLocation,
    cache_folder: Path,
    ready: Callable[[str], Path | None],
    progress: ArchiveProgress,
) -> Iterator[tuple[str, Path | None]]:
    """(SHA-256, file) of the archive at `location`. The file is None if `ready(SHA-256)` finds it unpacked.

    Raises EnvironmentFailure if the archive cannot be read, and ResourceError if the cache folder cannot be
    written.
    """
    from hashlib import sha256  # loads OpenSSL (5 MB), which only archives need

    source = location.url or str(location.local)
    record = cache_folder / "sources" / (sha256(os.fsencode(source)).hexdigest() + ".json")
    known = _read(record)
    if location.local is not None:
        identity = _identity(location.local)
        if not (known and known.identity == identity):
            known = ArchiveRecord(identity, _digest(location.local, progress))
            _write(record, known)
        yield known.digest, location.local
        if _identity(location.local) != identity:
            raise EnvironmentFailure(
                f"{location.named} changed while it was read", "start again when it is complete"
            )
        return
    downloads = Cache(cache_folder / "downloads")
    with downloads.locked(
        record.stem, lambda: progress("waiting for another start, which downloads it", 0, 0)
    ) as lock:
        known = _read(record)  # perhaps written while this process waited for the lock
        file = downloads.folder / f"{record.stem}.part"
        usable = known if known and ready(known.digest) else None
        try:
            found = _fetch(location, file, usable, lock, progress)
            _write(record, found)
            yield found.digest, file if file.exists() else None
        finally:
            file.unlink(missing_ok=True)


def _fetch(
    location: ArchiveLocation, file: Path, known: ArchiveRecord | None, lock: int, progress: ArchiveProgress
) -> ArchiveRecord:
    """Query the store, and download unless its version is `known`. Raises TwofoldError."""
    file.unlink(missing_ok=True)
    last: dict[str, Any] = {}
    command = [sys.executable, "-P", str(FETCH), location.url, str(file), known.identity if known else ""]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, pass_fds=[lock]
    ) as process:
        assert process.stdout is not None  # because of PIPE
        try:
            for line in process.stdout:
                last = json.loads(line)
                if "done" in last:
                    progress("downloading", last["done"], last["total"])
        except BaseException:
            process.kill()
            raise
    if "digest" in last:
        return ArchiveRecord(last["identity"], last["digest"])
    if known and "identity" in last:
        return known
    reason = last.get("error") or f"the download ended with code {process.returncode}"
    if known:
        progress(f"cannot ask for a newer {location.named} ({reason}); using the one in the cache", 0, 0)
        return known
    raise _failure(location, reason, last.get("fault", ""))


def _failure(location: ArchiveLocation, reason: str, fault: str) -> TwofoldError:
    if fault == "disk":
        return ResourceError(
            f"cannot download {location.named}: {reason}", "free some, or choose another --cache-dir"
        )
    if fault == "package":
        package = PACKAGES.get(urlsplit(location.url).scheme, "what its scheme needs")
        return EnvironmentFailure(f"cannot download {location.named}: {reason}", f"install {package}")
    return EnvironmentFailure(
        f"cannot download {location.named}: {reason}", "check the address and the access to it"
    )


def _identity(file: Path) -> str:
    try:
        found = file.stat()
        with file.open("rb"):
            pass
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot read {file}: {error.strerror}", "check the path of the archive"
        ) from None
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _digest(file: Path, progress: ArchiveProgress) -> str:
    from hashlib import sha256

    digest, done = sha256(), 0
    with file.open("rb") as content:
        total = os.fstat(content.fileno()).st_size
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress("hashing", done, total)
    return digest.hexdigest()


def _read(record: Path) -> ArchiveRecord | None:
    try:
        return ArchiveRecord(**json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return None  # missing, or from another version: the record only saves work


def _write(record: Path, known: ArchiveRecord) -> None:
    """Replace the record atomically: other processes read it without a lock. Raises ResourceError."""
    part = record.with_suffix(f".{os.getpid()}.part")
    try:
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(known)))
        part.replace(record)
    except OSError as error:
        raise ResourceError(
            f"cannot write to the cache folder {record.parent}: {error.strerror}",
            "make it writable, or choose another with --cache-dir",
        ) from None
