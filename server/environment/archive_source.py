"""Where a conda-pack archive comes from, and the hash of its content.

A place is a local path, or a URL that fsspec understands; `oci://BUCKET@NAMESPACE/PATH` is a local
file where a folder stands for the object store.  The hash is remembered beside what identifies that
version of the file (inode and times, or what the store says), so an unchanged archive is neither read
nor downloaded again.

Writes below the cache folder; starts server/fetch.py for URLs.
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

Progress = Callable[[str, int, int], None]  # what is done, bytes done, of all (0: not known)

CHUNK = 1 << 20
FETCH = Path(__file__).with_name("download.py")
PACKAGES = {"oci": "twofold[oci]", "s3": "twofold[s3]", "http": "twofold[https]", "https": "twofold[https]"}


@dataclass(frozen=True, slots=True)
class ArchiveLocation:
    """What the user named: a local path, which may be a folder too, or else a URL."""

    named: str
    local: Path | None
    url: str = ""


@dataclass(frozen=True, slots=True)
class KnownArchive:
    """What was found out about one version of an archive."""

    identity: str
    digest: str


def locate(named: str, oci_root: str) -> ArchiveLocation:
    """EnvironmentFailure if `named` is no place at all, or needs what is not installed."""
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
    place: ArchiveLocation, cache_folder: Path, ready: Callable[[str], Path | None], progress: Progress
) -> Iterator[tuple[str, Path | None]]:
    """(SHA-256, file) of the archive at `place`. No file where `ready(SHA-256)` makes it unnecessary.

    EnvironmentFailure when it cannot be had, ResourceError when the cache folder cannot take it.
    """
    from hashlib import sha256  # brings OpenSSL, 5 MB, which only archives need

    record = (
        cache_folder / "sources" / (sha256(os.fsencode(place.url or str(place.local))).hexdigest() + ".json")
    )
    known = _read(record)
    if place.local is not None:
        identity = _identity(place.local)
        if not (known and known.identity == identity):
            known = KnownArchive(identity, _digest(place.local, progress))
            _write(record, known)
        yield known.digest, place.local
        if _identity(place.local) != identity:
            raise EnvironmentFailure(
                f"{place.named} changed while it was read", "start again when it is complete"
            )
        return
    downloads = Cache(cache_folder / "downloads")
    with downloads.locked(
        record.stem, lambda: progress("waiting for another start, which downloads it", 0, 0)
    ) as lock:
        known = _read(record)  # by the one we waited for
        file = downloads.folder / f"{record.stem}.part"
        usable = known if known and ready(known.digest) else None
        try:
            found = _fetch(place, file, usable, lock, progress)
            _write(record, found)
            yield found.digest, file if file.exists() else None
        finally:
            file.unlink(missing_ok=True)


def _fetch(
    place: ArchiveLocation, file: Path, known: KnownArchive | None, lock: int, progress: Progress
) -> KnownArchive:
    """Ask the store; download where `known` is not what it has."""
    file.unlink(missing_ok=True)
    last: dict[str, Any] = {}
    command = [sys.executable, "-P", str(FETCH), place.url, str(file), known.identity if known else ""]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, pass_fds=[lock]
    ) as process:
        assert process.stdout is not None  # it is a pipe
        try:
            for line in process.stdout:
                last = json.loads(line)
                if "done" in last:
                    progress("downloading", last["done"], last["total"])
        except BaseException:
            process.kill()
            raise
    if "digest" in last:
        return KnownArchive(last["identity"], last["digest"])
    if known and "identity" in last:
        return known
    reason = last.get("error") or f"the download ended with code {process.returncode}"
    if known:
        progress(f"cannot ask for a newer {place.named} ({reason}); using the one in the cache", 0, 0)
        return known
    raise _failure(place, reason, last.get("fault", ""))


def _failure(place: ArchiveLocation, reason: str, fault: str) -> TwofoldError:
    if fault == "disk":
        return ResourceError(
            f"cannot download {place.named}: {reason}", "free some, or choose another --cache-dir"
        )
    if fault == "package":
        package = PACKAGES.get(urlsplit(place.url).scheme, "what its scheme needs")
        return EnvironmentFailure(f"cannot download {place.named}: {reason}", f"install {package}")
    return EnvironmentFailure(
        f"cannot download {place.named}: {reason}", "check the address and the access to it"
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


def _digest(file: Path, progress: Progress) -> str:
    from hashlib import sha256

    digest, done = sha256(), 0
    with file.open("rb") as content:
        total = os.fstat(content.fileno()).st_size
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress("hashing", done, total)
    return digest.hexdigest()


def _read(record: Path) -> KnownArchive | None:
    try:
        return KnownArchive(**json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return None  # none yet, or from another version: it is only a shortcut


def _write(record: Path, known: KnownArchive) -> None:
    """Atomic, because other starts read it without a lock."""
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
