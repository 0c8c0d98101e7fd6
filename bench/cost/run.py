"""`scripts/bench cost --against COMMIT`: is this checkout as cheap as that commit?

Touches bench/.work/ and loopback; needs Linux, git, wrk, and for instructions valgrind.  The exit code
is 0 where every part is as cheap, 1 where one is dearer, 2 for a failure, 3 where noise left one open.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import machine
from bench.cost import counting, installation, report, timing
from bench.cost.pairs import Verdict
from bench.cost.parts import PARTS, Both, Part
from bench.cost.report import Outcome
from bench.cost.timing import Plan
from bench.environments import Unavailable
from bench.load import find_wrk
from bench.running import WORK

LEAST_BODY = 2  # bytes: an empty list
FULL, QUICK = (9, 3), (3, 1)  # pairs, seconds


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def parse(arguments: list[str]) -> argparse.Namespace:
    """Ends the program where the command line is wrong, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench cost", description="Is this checkout as cheap as another commit?"
    )
    add = parser.add_argument
    add("--against", required=True, metavar="COMMIT", help="the other commit; it is installed beside this")
    add("--only", default=",".join(PARTS), help=f"these parts only: {','.join(PARTS)}")
    add("--pairs", type=positive, help=f"pairs of rounds (default {FULL[0]})")
    add("--seconds", type=positive, help=f"of a round (default {FULL[1]})")
    add("--connections", type=positive, default=32, help="kept connections (default 32)")
    add("--body", type=positive, default=46, metavar="BYTES", help="of a request (default 46)")
    add("--quick", action="store_true", help="a look: {} pairs of {} s".format(*QUICK))
    add("--interpreted", action="store_true", help="both without their compiled form")
    add("--instructions", action="store_true", help="count instructions even where time decides")
    add("--out", type=Path, help="path of the JSON; a Markdown table goes beside it")
    options = parser.parse_args(arguments)
    pairs, seconds = QUICK if options.quick else FULL
    options.plan = Plan(options.pairs or pairs, options.seconds or seconds, options.connections, options.body)
    options.parts = options.only.split(",")
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"{part} is not one of {', '.join(PARTS)}")
    if options.body < LEAST_BODY:
        parser.error(f"--body needs at least {LEAST_BODY} bytes, for an empty list")
    return options


def compare(part: Part, both: Both, plan: Plan, count: bool) -> Outcome:
    """Raises Unavailable or RuntimeError where the times cannot be measured."""
    print(f"\n{part.name}: {part.title}", flush=True)
    outcome = Outcome(part, timing.measure(part, both, plan))
    if outcome.by_time is Verdict.NOISY:
        print("  too noisy for a verdict by time", flush=True)
    if count or outcome.by_time is Verdict.NOISY:
        try:
            outcome = Outcome(part, outcome.times, counting.measure(part, both, plan))
        except (Unavailable, RuntimeError, OSError) as error:  # the times are worth having
            outcome = Outcome(part, outcome.times, uncounted=str(error))
    print("\n".join(report.lines(outcome)), flush=True)
    return outcome


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[Verdict]]:
    find_wrk()
    commit = installation.resolve(options.against)
    both = installation.this(options.interpreted), installation.other(commit, options.interpreted)
    this, other = both
    plan: Plan = options.plan
    print(f"this is {this.commit}, other is {other.commit}; both {this.form}", flush=True)
    outcomes = [compare(PARTS[name], both, plan, options.instructions) for name in options.parts]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "this": this.commit,
        "other": other.commit,
        "form": this.form,
        "plan": asdict(plan),
        "machine": machine.describe(),
        "parts": {one.part.name: report.as_json(one) for one in outcomes},
    }
    return result, [one.verdict for one in outcomes]


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    # The servers lead sessions of their own: without this a SIGTERM would leave them running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        result, verdicts = measure(options)
    except (Unavailable, RuntimeError) as error:
        print(f"bench: cannot compare: {error}", file=sys.stderr)
        return report.ExitCode.FAILED
    name = f"cost-{result['other'][: installation.SHORT]}.json"
    print()
    for path in report.write(result, options.out or WORK / name):
        print(f"written: {path}")
    return report.exit_code(verdicts)
