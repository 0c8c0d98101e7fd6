"""The compiled form of the hot path: which modules it has, where it lies, and whether it may be used.

Reads the sources of both packages and changes where they are looked for; standard library only, for it
runs before all else.  The source is the same typed Python: mypyc makes machine code of it
(`python -m loadbalancer.compiling`), which spares what interpreting costs, and it is what runs where
nothing has been compiled.

Compiled modules are used only while they are of the source beside them, to the last byte: whoever
edits a file runs what is written there.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
SWITCH = "TWOFOLD_INTERPRETED"  # a variable; not empty: leave the compiled form alone
MARK = "source"  # the file that says of which source it is

# By package: what a request goes through, and the arithmetic of a tick.
HOT = {
    "loadbalancer": (
        "admission", "answer", "bucket", "budget", "chunked", "client", "deadlines", "drr", "instance",
        "journal", "ledger", "link", "memory", "plan", "pool", "proxy", "reactor", "refusal", "reply",
        "roster", "shares", "throttle", "transport", "upstream", "waiting",
    ),
    "server": ("log", "request_ids"),
}  # fmt: skip
TRUSTED = ("http1", "log", "request_ids", "scribe")  # of the server, by any of these


def folder() -> Path:
    """Of this interpreter and machine; others have theirs beside it."""
    return ROOT / "loadbalancer" / "_native" / str(sysconfig.get_config_var("SOABI"))


def source(root: Path = ROOT) -> str:
    """What tells this source from any other: a compiled module trusts what those that it imports promise."""
    paths = [root / "server" / f"{name}.py" for name in TRUSTED]
    paths += sorted((root / "loadbalancer").glob("*.py"))
    digest = hashlib.blake2b(sys.version.encode(), digest_size=16)
    for path in paths:
        digest.update(b"%b\0%b\0" % (path.name.encode(), path.read_bytes()))
    return digest.hexdigest()


def fresh() -> bool:
    """Whether there is a compiled form, of this very source."""
    try:
        return (folder() / MARK).read_bytes() == source().encode()
    except OSError:
        return False


def prefer() -> None:
    """Let imports find the compiled modules first, if they may be used, and none of the others is in use."""
    names = {f"{package}.{name}" for package, names in HOT.items() for name in names}
    if os.environ.get(SWITCH) or names & sys.modules.keys() or not fresh():
        return
    packages = [importlib.import_module(package) for package in HOT]
    sys.path.append(str(folder()))
    try:
        for library in folder().glob("*__mypyc.*"):  # which they share
            importlib.import_module(library.name.partition(".")[0])
    except ImportError as error:
        sys.path.remove(str(folder()))
        print(
            f"twofold: what was compiled cannot be loaded, so the source is interpreted: {error}",
            file=sys.stderr,
        )
        return
    for package in packages:
        package.__path__.insert(0, str(folder() / package.__name__))


def used() -> bool:
    """Whether this process prefers them."""
    return str(folder()) in sys.path
