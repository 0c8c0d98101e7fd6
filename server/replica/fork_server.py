"""The fork server: one process in the model's interpreter that forks replicas on command.

Standard library only, Python 3.7 to 3.14.  It talks to the supervisor through two inherited fds:

    control   supervisor -> fork server               a JSON line for each replica wanted
    reports   fork server and replicas -> supervisor  a JSON line (<= PIPE_BUF, so lines never mix) for
                                                      each event: see server/supervision/reports.py

A replica is forked twice: the process between exits at once, and the kernel hands the replica to
the nearest subreaper, which is the supervisor.  So the supervisor reaps every replica itself and
sees how it ended, and a fork server that dies takes no replica with it.

preload: "none" leaves all to the replica; "imports" imports what score.py imports, here, once;
"model" loads the model here, once, and the replicas share its memory copy-on-write.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import mmap
import os
import select
import signal
import sys
import time
import traceback
from typing import Any, Iterator

from . import loop, model, prctl, slots
from .inherited import EXIT_LOAD_FAILED, Inherited

READ_SIZE = 65536
BEAT_MS = 1000  # at most, between two signs of life


def main() -> None:
    """Be a fork server until the supervisor closes its end of the control socket."""
    inherited = Inherited(json.loads(sys.argv[2]))
    prctl.die_with_parent(inherited.supervisor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preloaded = None
    try:
        preloaded = preload(inherited)
    except model.LoadFailure as failure:
        inherited.report("preload_failed", stage=failure.stage, error=str(failure))
        sys.exit(EXIT_LOAD_FAILED)
    gc.collect()
    gc.freeze()
    faulthandler.enable()  # a SIGABRT of the watchdog prints where it hangs
    for order in orders(inherited):
        try:
            fork_replica(inherited, order, preloaded)
        except OSError as error:  # EAGAIN: the process table or a limit is full
            inherited.report("not_forked", replica=order["replica"], error=str(error))


def orders(inherited: Inherited) -> Iterator[dict[str, Any]]:
    """The supervisor's orders until it closes its end; between them, a sign of life once a second."""
    control = mmap.mmap(inherited.memory, slots.CONTROL_SIZE)
    offset = slots.HEARTBEATS_OFFSET + slots.FORK_SERVER_BEAT * slots.HEARTBEAT.size
    poll = select.poll()
    poll.register(inherited.control, select.POLLIN)
    rest = b""
    while True:
        slots.HEARTBEAT.pack_into(control, offset, int(time.monotonic() * 1e9))
        if not poll.poll(BEAT_MS):
            continue
        chunk = os.read(inherited.control, READ_SIZE)
        if not chunk:
            return
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            yield json.loads(line.decode("utf-8"))
            slots.HEARTBEAT.pack_into(control, offset, int(time.monotonic() * 1e9))


def preload(inherited: Inherited) -> model.Model | None:
    """Preload as told, and report it; the model if it was loaded. Raises model.LoadFailure."""
    started_s = time.monotonic()
    loaded = None
    failed: list[Any] = []
    if inherited.preload == "imports":
        failed = [name + ": " + error for name, error in model.preload_imports(inherited.artifact) if error]
    elif inherited.preload == "model":
        loaded = model.Model.load(inherited.artifact)
    inherited.report(
        "fork_server",
        pid=os.getpid(),
        python="%d.%d.%d" % sys.version_info[:3],
        preload_s=time.monotonic() - started_s,
        failed=failed,
    )
    return loaded


def fork_replica(inherited: Inherited, order: dict[str, Any], preloaded: model.Model | None) -> None:
    """Fork a replica by way of a process that ends at once, and report it. Raises OSError."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    try:
        pid = os.fork()
        if pid == 0:
            loop.be_replica(inherited, order, preloaded)
        else:
            inherited.report("forked", replica=order["replica"], pid=pid)
    except OSError as error:
        inherited.report("not_forked", replica=order["replica"], error=str(error))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
