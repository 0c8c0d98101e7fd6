"""`scripts/bench balance`: cost, bandwidth, balance and streams of the load balancer, one after the other.

Needs Linux, wrk, and for the contenders the Debian packages of proxies.PACKAGES; what is missing is
skipped, with its reason.  `tc tbf` needs the right to make a network namespace.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine
from bench.balance import bandwidth, cost, pool, proxies, relay, report
from bench.cpu import machine_time
from bench.environments import Unavailable
from bench.load import find_wrk
from bench.report import RESULTS
from twofold.native import load

PARTS = ("cost", "bandwidth", "pool", "streams")
LOOK = 1.0  # seconds


def background() -> float:
    """Cores that somebody else keeps busy, now that we do nothing."""
    time.sleep(LOOK / 2)  # what has just been stopped tidies up
    before = sum(machine_time())
    time.sleep(LOOK)
    return (sum(machine_time()) - before) / LOOK


def versions() -> dict[str, str]:
    form = "compiled" if load.fresh() else "interpreted"
    found = {"twofold": f"{machine.versions(set())['twofold']}; {form}"}
    for name, option in (("nginx", "-v"), ("haproxy", "-v"), ("tc", "-V")):
        try:
            said = subprocess.run([proxies.program(name), option], capture_output=True, text=True, timeout=10)
            found[name] = (said.stdout or said.stderr).splitlines()[0]
        except Unavailable as error:
            found[name] = str(error)
    return found


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench balance", description="Measure the load balancer.")
    parser.add_argument("--quick", action="store_true", help="about 6 minutes instead of 25")
    parser.add_argument("--only", default=",".join(PARTS), help=f"these parts only: {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    options.parts = options.only.split(",")
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"{part} is not one of {', '.join(PARTS)}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    skipped: dict[str, str] = {}
    mode = "quick" if options.quick else "full"
    make: dict[str, Callable[[], Any]] = {
        "cost": cost.Cost(cost.QUICK if options.quick else cost.FULL, skipped).measure,
        "bandwidth": bandwidth.Bandwidth(
            bandwidth.QUICK if options.quick else bandwidth.FULL, skipped
        ).measure,
        "pool": pool.Pool(pool.QUICK if options.quick else pool.FULL, skipped).measure,
        "streams": relay.Relay(relay.QUICK if options.quick else relay.FULL, skipped).measure,
    }
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "mode": mode,
        "machine": machine.describe(),
        "versions": versions(),
        "background": [background()],
        "skipped": skipped,
    }
    began = time.monotonic()
    for part in options.parts:
        print(f"\n== {part}, after {time.monotonic() - began:.0f} s", flush=True)
        try:
            result[part] = make[part]()
        except (Unavailable, RuntimeError) as error:  # the other parts are worth having
            skipped[part] = str(error)
            print(f"skipped {part}: {error}", flush=True)
        result["background"].append(background())
    return result


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    # What we start leads sessions of its own: without this a SIGTERM would leave it running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    try:
        find_wrk()
        result = measure(options)
    except Unavailable as error:
        print(f"bench: cannot go on: {error}", file=sys.stderr)
        return 1
    result["seconds"] = round(time.monotonic() - began)
    name = "balance"
    name += "" if set(options.parts) == set(PARTS) else "-" + "-".join(options.parts)
    written = report.write(result, options.out, name + ("-quick" if options.quick else ""))
    print("\n" + report.closing(result))
    for path in written:
        print(f"written: {path}")
    return 0
