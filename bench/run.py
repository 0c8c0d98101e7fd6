"""The whole comparison: start every contender, load them in turn, measure, write, print the ratios.

Rounds of one cell alternate between the contenders, in an order that moves by one each round, so
that a slow minute of the machine affects all of them; the report has medians.  Needs wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import machine, memory_usage, report
from bench.cpu import Tree
from bench.environments import Unavailable
from bench.load import Round, find_wrk, run_round
from bench.running import WORK, Running, start
from bench.servers import CONTENDERS, QUICK, Contender
from bench.workloads import FULL_CELLS, QUICK_CELLS, Cell, bodies

QUIET_SECONDS = 0.1
QUIET_LIMIT = 10.0


@dataclass
class Session:
    """One run: its parameters and its results so far."""

    contenders: list[Contender]
    cells: tuple[Cell, ...]
    rounds: int
    seconds: float
    measured: dict[Cell, dict[str, list[Round]]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)  # PSS after the load, in bytes
    skipped: dict[str, str] = field(default_factory=dict)


def wait_until_quiet(tree: Tree) -> None:
    """Work left over from one round must not be charged to the next contender."""
    deadline = time.monotonic() + QUIET_LIMIT
    before = tree.seconds()
    while time.monotonic() < deadline:
        time.sleep(QUIET_SECONDS)
        now = tree.seconds()
        if now - before < QUIET_SECONDS / 5:
            return
        before = now


def start_all(session: Session, model: str, stack: contextlib.ExitStack) -> list[Running]:
    """Those that start and answer rightly; the others are skipped, with their reason."""
    body = next(iter(bodies(model).values()))
    running = []
    for contender in session.contenders:
        if model not in contender.models:
            continue
        try:
            server = start(contender, model)
            stack.callback(server.stop)
            server.wait(body)
        except Unavailable as error:
            session.skipped[f"{contender.name} ({model})"] = str(error)
            print(f"skipped {contender.name}: {error}", flush=True)
            continue
        running.append(server)
    return running


def run_model(session: Session, model: str) -> None:
    cells = [cell for cell in session.cells if cell.model == model]
    with contextlib.ExitStack() as stack:
        servers = start_all(session, model, stack)
        for name, body in bodies(model).items():
            here = [cell for cell in cells if cell.body == name]
            if not here:
                continue
            for server in servers:
                server.check(body)
            path = WORK / f"body-{len(body.content)}"
            path.write_bytes(body.content)
            for server in servers:  # warm up
                run_round(server.tree, server.target(path), 8, 1)
            for cell in here:
                run_cell(session, cell, servers, path)
            for server in servers:
                server.check(body)
        if model == "rows":
            session.memory = {server.contender.name: server.tree.pss() for server in servers}


def run_cell(session: Session, cell: Cell, servers: list[Running], body: Path) -> None:
    found: dict[str, list[Round]] = {server.contender.name: [] for server in servers}
    for number in range(session.rounds):
        turn = number % len(servers)
        for server in servers[turn:] + servers[:turn]:
            wait_until_quiet(server.tree)
            done = run_round(server.tree, server.target(body), cell.connections, session.seconds)
            wait_until_quiet(server.tree)
            found[server.contender.name].append(done)
    session.measured[cell] = found
    print(f"\n{cell.name}", flush=True)
    for name, rounds in found.items():
        print("  " + report.line(name, report.summary(rounds)), flush=True)


def as_json(session: Session, mode: str, own: memory_usage.MemoryUsage | None) -> dict[str, Any]:
    environments = {c.environment for c in session.contenders if c.environment}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "mode": mode,
        "rounds": session.rounds,
        "seconds": session.seconds,
        "machine": machine.describe(),
        "versions": machine.versions(environments),
        "titles": {c.name: c.title for c in session.contenders},
        "cells": [
            {
                **asdict(cell),
                "servers": {name: [one.as_json() for one in rounds] for name, rounds in found.items()},
            }
            for cell, found in session.measured.items()
        ],
        "memory": session.memory,
        "skipped": session.skipped,
        "memory_usage": own.as_json() if own else None,
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Compare twofold with other servers.")
    parser.add_argument("--quick", action="store_true", help="46 B at 32 and 1 connections, four servers")
    names = ",".join(contender.name for contender in CONTENDERS)
    parser.add_argument("--only", default="", help=f"these contenders only: {names}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per cell and server (default 5)")
    parser.add_argument("--seconds", type=int, default=2, help="seconds per round (default 2)")
    parser.add_argument("--no-memory-usage", action="store_true", help="leave out start time and memory")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the results")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    # The servers lead sessions of their own: without this a SIGTERM would leave them running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        find_wrk()
    except Unavailable as error:
        print(f"bench: nothing can be measured: {error}", file=sys.stderr)
        return 1
    wanted = options.only.split(",") if options.only else list(QUICK if options.quick else [])
    contenders = [c for c in CONTENDERS if not wanted or c.name in wanted]
    cells = QUICK_CELLS if options.quick else FULL_CELLS
    session = Session(contenders, cells, options.rounds, options.seconds)
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        for model in dict.fromkeys(cell.model for cell in cells):
            run_model(session, model)
    finally:
        for body in WORK.glob("body-*"):
            body.unlink()
    own = None if options.no_memory_usage else memory_usage.measure(options.quick)
    result = as_json(session, "quick" if options.quick else "full", own)
    written = report.write(result, options.out, machine.label())
    print("\n" + report.closing(result))
    for path in written:
        print(f"written: {path}")
    return 0
