"""Turns the figures of a run into Markdown, JSON, a chart, and a list of bars that are met or not.

Pure arithmetic on the JSON of a run, except write(), which touches the results folder only.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.environments import BENCH, Unavailable, prepare
from bench.load import Round
from bench.workloads import HEADLINE, SINGLE, Cell

RESULTS = BENCH / "results"
MB = 1024 * 1024
FIGURES = ("requests", "rate", "p50_us", "p99_us", "cpu_us", "errors", "other_cores", "stolen_cores")
DISTURBED_CORES = 0.1
GROWTH_MB = 2.0  # what counts as "where it was before" for resident memory


def summary(rounds: Iterable[Round | dict[str, Any]]) -> dict[str, float]:
    """Medians of the rounds; errors are summed, for one error marks the whole cell."""
    plain = [one.as_json() if isinstance(one, Round) else one for one in rounds]
    found = {figure: statistics.median(one[figure] for one in plain) for figure in FIGURES}
    return {**found, "errors": sum(one["errors"] for one in plain)}


def line(name: str, one: dict[str, float]) -> str:
    mark = f"  {one['errors']:.0f} ERRORS" if one["errors"] else ""
    return (
        f"{name:14} {one['rate']:9,.0f} requests/s  p50 {one['p50_us'] / 1000:8.2f} ms  "
        f"p99 {one['p99_us'] / 1000:8.2f} ms  CPU {one['cpu_us']:8.1f} us{mark}"
    )


def find(result: dict[str, Any], cell: Cell) -> dict[str, dict[str, float]]:
    """Server -> medians in that cell; empty where it was not run."""
    for one in result["cells"]:
        if (one["model"], one["body"], one["connections"]) == (cell.model, cell.body, cell.connections):
            return {name: summary(rounds) for name, rounds in one["servers"].items()}
    return {}


def ratios(result: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """(peer, CPU per request, requests/s, p50 of one connection); each a factor in favour of twofold."""
    many, single = find(result, HEADLINE), find(result, SINGLE)
    if "twofold" not in many or "twofold" not in single:
        return []
    ours, alone = many["twofold"], single["twofold"]
    return [
        (
            peer,
            many[peer]["cpu_us"] / ours["cpu_us"],
            ours["rate"] / many[peer]["rate"],
            single[peer]["p50_us"] / alone["p50_us"],
        )
        for peer in many
        if not peer.startswith("twofold") and peer in single
    ]


def bars(result: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(requirement, result, met)."""
    many, found = find(result, HEADLINE), []
    compared = {peer: rest for peer, *rest in ratios(result)}
    for name, limit in (("twofold", 25.0), ("twofold-nolog", 21.0)):
        if name in many:
            log = "access log on" if name == "twofold" else "access log off"
            cpu = many[name]["cpu_us"]
            found.append((f"CPU per request, {log}: at most {limit:.0f} us", f"{cpu:.1f} us", cpu <= limit))
    for peer, least in (("mosec", 5.5), ("triton", 8.0)):
        if peer in compared:
            times = compared[peer][0]
            asked = f"CPU per request: {least:g} times less than {peer}"
            found.append((asked, f"{times:.1f}", times >= least))
    if "mosec" in compared:
        _, rate, p50 = compared["mosec"]
        found.append(("requests/s: 4 times mosec's", f"{rate:.1f}", rate >= 4))
        found.append(("p50 with one connection: at most half of mosec's", f"1/{p50:.1f}", p50 >= 2))
    return found + (_own_bars(result["memory_usage"]) if result["memory_usage"] else [])


def _own_bars(own: dict[str, Any]) -> list[tuple[str, str, bool]]:
    replica, rest = own["roles"]["replica"] / MB, own["rest"] / MB
    each = own["idle_bytes_each"] / 1024
    before, after = (sum(own[when].values()) / MB for when in ("big_before", "big_after"))
    started = own["start_seconds"]
    return [
        ("everything but the model: under 80 MB PSS", f"{rest:.1f} MB", rest < 80),
        ("a replica's own overhead: under 12 MB PSS", f"{replica:.1f} MB", replica < 12),
        (f"{own['idle_connections']:,} idle connections: under 50 KB each", f"{each:.1f} KB", each < 50),
        (
            "10 MB round trips leave resident memory where it was",
            f"{before:.1f} MB before, {after:.1f} MB after",
            after - before <= GROWTH_MB,
        ),
        ("`twofold serve examples/echo` ready: under 1.5 s", f"{started:.2f} s", started < 1.5),
    ]


def closing(result: dict[str, Any]) -> str:
    """The text printed at the end: ratios and bars."""
    lines = ["46 B, 32 connections, access log on; factors by which twofold is better (p50: 1 connection)"]
    for peer, cpu, rate, p50 in ratios(result):
        lines.append(f"  {peer:14} CPU per request {cpu:6.1f}   requests/s {rate:6.1f}   p50 {p50:6.1f}")
    lines += [f"  {'met    ' if met else 'NOT MET'} {asked}: {got}" for asked, got, met in bars(result)]
    return "\n".join([*lines, *_disturbance(result)])


def markdown(result: dict[str, Any], chart: str) -> str:
    lines = [f"# Comparison of {result['date']} ({result['mode']} run)", ""]
    lines += [f"- {name}: {value}" for name, value in result["machine"].items()]
    lines += [
        f"- {result['rounds']} rounds of {result['seconds']} s per cell and server, in alternation; medians",
        "- CPU: user + system time of all server processes, per request; PSS: all of them, after the load",
        *_disturbance(result),
        "",
    ]
    if chart:
        lines += [f"![CPU per request, requests/s and p50 by server]({chart})", ""]
    lines += ["## Bars", "", "| asked | found | |", "|---|---|---|"]
    lines += [f"| {asked} | {got} | {'met' if met else '**not met**'} |" for asked, got, met in bars(result)]
    lines += ["", "## Ratios", "", "46 B: CPU per request and requests/s at 32 connections, p50 at one.", ""]
    lines += ["| peer | CPU, times less | requests/s, times more | p50, times less |", "|---|---|---|---|"]
    lines += [f"| {peer} | {cpu:.1f} | {rate:.1f} | {p50:.1f} |" for peer, cpu, rate, p50 in ratios(result)]
    return "\n".join([*lines, "", *_cells(result), *_own(result), *_versions(result)]) + "\n"


def _disturbance(result: dict[str, Any]) -> list[str]:
    """How much of the machine others used meanwhile: a reader must know how far to trust the rates."""
    rounds = [one for cell in result["cells"] for rounds in cell["servers"].values() for one in rounds]
    if not rounds:
        return []
    other = [one["other_cores"] for one in rounds]
    stolen = [one["stolen_cores"] for one in rounds]
    lines = [
        f"- cores used by other processes: median {statistics.median(other):.2f}, worst {max(other):.2f}",
        f"- cores taken by the hypervisor: median {statistics.median(stolen):.2f}, worst {max(stolen):.2f}",
    ]
    if statistics.median(other) + statistics.median(stolen) > DISTURBED_CORES:
        lines.append("- **DISTURBED RUN**: others used the machine; trust ratios, not figures")
    return lines


def _cells(result: dict[str, Any]) -> list[str]:
    lines = []
    for cell in result["cells"]:
        lines += [f"## {cell['model']}, {cell['body']}, {cell['connections']} connections", ""]
        lines += ["| server | requests/s | p50 ms | p99 ms | CPU us | PSS MB | errors |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|"]
        for name, rounds in cell["servers"].items():
            one = summary(rounds)
            size = f"{result['memory'].get(name, 0) / MB:.0f}" if cell["model"] == "rows" else ""
            # requests under way at the end of a round cost time but are not counted
            about = "~" if one["requests"] < 10 * cell["connections"] else ""
            errors = f"**{one['errors']:.0f}**" if one["errors"] else "0"
            lines.append(
                f"| {result['titles'][name]} | {one['rate']:,.0f} | {one['p50_us'] / 1000:.2f} "
                f"| {one['p99_us'] / 1000:.2f} | {about}{one['cpu_us']:.1f} | {size} | {errors} |"
            )
        lines.append("")
    return lines


def _own(result: dict[str, Any]) -> list[str]:
    own = result["memory_usage"]
    if not own:
        return []
    roles = ", ".join(f"{role} {size / MB:.1f}" for role, size in own["roles"].items())
    each = own["idle_bytes_each"] / 1024
    before, after = own["big_before"], own["big_after"]
    grown = ", ".join(f"{role} {before[role] / MB:.1f} -> {size / MB:.1f}" for role, size in after.items())
    return [
        "## Start and memory of twofold",
        "",
        f"- seconds to the first answer: {', '.join(f'{one:.2f}' for one in own['starts'])}",
        f"- PSS in MB after the start: {roles}",
        f"- {own['idle_connections']:,} answered, idle connections: {each:.1f} KB each (PSS, not sockets)",
        f"- PSS in MB before and after 10 MB round trips: {grown}; one takes {own['big_ms']:.0f} ms",
        "",
    ]


def _versions(result: dict[str, Any]) -> list[str]:
    lines = ["## Versions", "", *(f"- {name}: {value}" for name, value in result["versions"].items())]
    if result["skipped"]:
        lines += ["", "## Skipped", "", *(f"- {name}: {why}" for name, why in result["skipped"].items())]
    return lines


def write(result: dict[str, Any], folder: Path, label: str) -> list[Path]:
    """Write NAME.json, NAME.md and, if matplotlib can be installed, NAME.png. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "" if result["mode"] == "full" else "-quick"
    base = folder / f"{result['date']}-{label}{suffix}"
    raw, text, chart = (base.with_name(base.name + end) for end in (".json", ".md", ".png"))
    raw.write_text(json.dumps(result, indent=1) + "\n")
    drawn = _draw(raw, chart)
    text.write_text(markdown(result, chart.name if drawn else ""))
    return [text, raw, *([chart] if drawn else [])]


def _draw(raw: Path, chart: Path) -> bool:
    """matplotlib lives in an environment of its own: no dependency of the product."""
    try:
        python = prepare("report")
    except Unavailable as error:
        print(f"no chart: {error}")
        return False
    command = [str(python), str(BENCH / "chart.py"), str(raw), str(chart)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        print(f"no chart: {done.stderr.strip()[-300:]}")
    return done.returncode == 0
