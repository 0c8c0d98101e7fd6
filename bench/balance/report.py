"""From the figures of one run to bars met or not, Markdown, JSON and a chart.

Pure arithmetic on the JSON of a run, but for write(), which touches the results folder only.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.balance import tables
from bench.balance.tables import medians, paired, uncertainty
from bench.environments import BENCH, Unavailable, prepare

Bar = tuple[str, str, bool]  # what was asked, what was found, met

BUSY_CORES = 0.1
LATE_US = 2000.0  # a generator this late at p99 tells more about the machine than about the proxy
SERVICE_US = 50_000.0  # allowed beyond the delay budget for a request that was admitted
BUDGET_US = 1_000_000.0
SLOW_SHARE = 0.1 / 3.1
CHUNK_MS = 5.0


def bars(result: dict[str, Any]) -> list[Bar]:
    found: list[Bar] = []
    judges = {"cost": _cost_bars, "bandwidth": _bandwidth_bars, "pool": _pool_bars, "streams": _stream_bars}
    for part, judge in judges.items():
        if part in result:
            found += judge(result[part])
    return found


# ---------------------------------------------------------------------- cost


def _cost_bars(cost: dict[str, Any]) -> Iterator[Bar]:
    """Each comparison is made round by round: see tables.paired."""
    for cell in cost["cells"]:
        known = cell["proxies"]
        if "ours" not in known:
            continue
        ours = known["ours"]
        if "ours-local" in known and "nginx" in known:
            asked = "CPU per request: each as it asks an instance here by default, of nginx's"
            yield _compared(asked, known["ours-local"], known["nginx"], "cpu_us")
        for peer in ("nginx", "haproxy"):
            if peer not in known:
                continue
            other, where = known[peer], f"{peer}'s, {cell['title']}"
            yield _compared(f"CPU per request: at most {where}", ours, other, "cpu_us")
            if peer == "nginx":
                asked = f"requests/s: at least 95 % of {where}"
                part = paired(ours, other, "rate")
                yield asked, f"{part:.0%}", part >= 0.95
            if peer == "nginx" and ours["half"]:
                asked = f"p99 at half load: at most 1.1 times {where}"
                yield _compared(asked, ours, other, "p99_us", "half", most=1.1)


def _compared(
    asked: str,
    ours: dict[str, Any],
    other: dict[str, Any],
    figure: str,
    rounds: str = "rounds",
    most: float = 1.0,
) -> Bar:
    found, error = paired(ours, other, figure, rounds), uncertainty(ours, other, figure, rounds)
    return asked, f"{found:.0%} ± {error:.0%}", found <= most


def _at_most(asked: str, found: float, limit: float, unit: str) -> Bar:
    return asked, f"{found:.4g} of {limit:.4g} {unit}", found <= limit


# ---------------------------------------------------------------------- bandwidth


def _most(rate: dict[str, Any]) -> float:
    """Bytes beyond the rate that a reader may see at once; it dates them when it gets to run."""
    return float(rate["allowed"] + rate["mbps"] * 1e6 / 8 * rate["stall_ms"] / 1e3)


def _bandwidth_bars(band: dict[str, Any]) -> Iterator[Bar]:
    rates = band["rates"]
    worst = max(rates, key=lambda one: abs(one["rate"] / one["mbps"] / 1e6 - 1))
    off = abs(worst["rate"] / worst["mbps"] / 1e6 - 1)
    yield f"long-run error: at most 1 % over {band['seconds']:g} s", f"{off:.2%} at {_at(worst)}", off <= 0.01
    worst = max(rates, key=lambda one: one["excess"] / _most(one))
    part = worst["excess"] / _most(worst)
    asked = "envelope: never more than depth + one turn, and what came while the reader was stalled"
    yield asked, f"{part:.0%} of that at {_at(worst)}", part <= 1
    backlogged = [one for one in rates if one["mbps"] >= 10]
    if backlogged:
        worst = min(backlogged, key=lambda one: one["within"])
        met = worst["within"] >= 0.95
        yield "100 ms bins within 10 %, from 10 Mbps: 95 %", f"{worst['within']:.0%} at {_at(worst)}", met
    yield from _step_bars(band["step"])
    least, most = (
        pick(one[figure] for one in band["fairness"]) for pick, figure in ((min, "jain"), (max, "spread"))
    )
    yield "Jain index of 2, 8, 64 streams: at least 0.99", f"{least:.4f}", least >= 0.99
    yield "largest of their shares: at most 1.05 times the least", f"{most:.3f}", 0 < most <= 1.05
    elephant, idle = band["elephant"], band["idle"]
    late, limit = elephant["small"]["p99_us"] / 1000, elephant["limit_us"] / 1000
    refused = sum(n for status, n in elephant["small"]["statuses"].items() if status != "200")
    asked = "p99 of small ones beside an elephant: two turns of each, and service"
    yield asked, f"{late:.1f} of {limit:.1f} ms, {refused} refused", late <= limit and not refused
    change = abs(idle["with"] / idle["without"] - 1)
    yield f"{idle['connections']} idle connections: change of rate below 1 %", f"{change:.2%}", change < 0.01
    yield from _reject_bars(band["reject"])
    limiter = band["limiter"]
    more = limiter["more"]
    yield "limiter at 100 Mbps of 10 KB exchanges: at most 3 % of a core", f"{more:.1%}", more <= 0.03


def _at(one: dict[str, Any]) -> str:
    return f"{one['mbps']:g} Mbps, {one['mix']}"


def _step_bars(step: dict[str, Any]) -> Iterator[Bar]:
    if "ours" not in step:
        return
    times = step["ours"]["settled_ms"]
    asked = f"steps {' to '.join(f'{one:g}' for one in step['mbps'])} Mbps: 90 % within 150 ms"
    yield asked, ", ".join(f"{one:.0f} ms" for one in times), all(0 <= one <= 150 for one in times)
    part = step["ours"]["largest"] / step["most"]
    yield "no 100 ms bin above the larger rate + depth", f"{part:.0%} of that", part <= 1


def _reject_bars(reject: dict[str, Any]) -> Iterator[Bar]:
    part = reject["good_mbps"] / reject["mbps"]
    yield "offered twice the bandwidth: goodput at least 97 %", f"{part:.1%}", part >= 0.97
    others = {name: n for name, n in reject["statuses"].items() if name not in ("200", "429")}
    yield "the rest 429 and nothing else", f"others: {others or 'none'}", not others
    late = reject["p99_us"]
    asked = "p99 of those admitted: delay budget and service"
    yield asked, f"{late / 1e6:.2f} of {(BUDGET_US + SERVICE_US) / 1e6:.2f} s", late <= BUDGET_US + SERVICE_US


# ---------------------------------------------------------------------- pool


def _pool_bars(pool: dict[str, Any]) -> Iterator[Bar]:
    for cell in pool["loads"]:
        if cell["load"] < 0.7 or "ours" not in cell["proxies"]:
            continue
        ours = cell["proxies"]["ours"]["p99_us"] / 1000
        limit = 1.15 * cell["central_queue"]["p99_us"] / 1000
        where = f"p99 at {cell['load']:.0%}: at most"
        yield _at_most(f"{where} 1.15 times a central queue's", ours, limit, "ms")
        for peer in ("nginx-buffered", "haproxy"):
            if peer in cell["proxies"]:
                title = cell["proxies"][peer]["title"]
                yield _at_most(f"{where} that of {title}", ours, cell["proxies"][peer]["p99_us"] / 1000, "ms")
    healthy = next((one for one in pool["loads"] if one["load"] == 0.5), None)
    slow = pool["slow"]["proxies"].get("ours")
    if slow and healthy and "ours" in healthy["proxies"]:
        limit = 1.5 * healthy["proxies"]["ours"]["p99_us"] / 1000
        yield _at_most(
            "one slowed 10 times: p99 at most 1.5 times the healthy", slow["p99_us"] / 1000, limit, "ms"
        )
        share = list(slow["shares"].values())[-1] if len(slow["shares"]) == pool["instances"] else 0.0
        yield "its share at most what it can do", f"{share:.1%} of {SLOW_SHARE:.1%}", share <= SLOW_SHARE
    mixed = pool["mixed"]["proxies"]
    if "ours" in mixed and "nginx-rr" in mixed:
        blind = mixed["nginx-rr"]["p99_us"]
        times, best = (blind / one["p99_us"] for one in (mixed["ours"], pool["mixed"]["central_queue"]))
        found = f"{times:.1f} times less, a central queue's {best:.1f}"
        yield "1 ms and 100 ms: p99 half of round robin's", found, times >= 2


# ---------------------------------------------------------------------- streams


def _stream_bars(streams: dict[str, Any]) -> Iterator[Bar]:
    """The direct connection shows what reader and machine add: a worst chunk above it is ours."""
    if "ours" not in streams["proxies"]:
        return
    ours, direct = streams["proxies"]["ours"], streams["proxies"]["direct"]
    for figure, asked in (("p99_us", "p99 of chunks passed on"), ("max_us", "the slowest chunk passed on")):
        late, beside = ours[figure] / 1000, direct[figure] / 1000
        yield f"{asked}: within 5 ms", f"{late:.2f} ms, direct {beside:.2f} ms", late <= CHUNK_MS


# ---------------------------------------------------------------------- text


def closing(result: dict[str, Any]) -> str:
    lines = [f"  {'met    ' if met else 'NOT MET'} {asked}: {got}" for asked, got, met in bars(result)]
    return "\n".join([*lines, *_doubts(result)])


def _doubts(result: dict[str, Any]) -> list[str]:
    """How much of the machine others used, and how late our own generator was."""
    busy = result["background"]
    lines = [f"- cores used by others in between: {', '.join(f'{one:.2f}' for one in busy)}"]
    late = [one for _, one in _lateness(result)]
    if late:
        worst = max(late) / 1000
        lines.append(
            f"- the generator's own lateness: p99 median {statistics.median(late) / 1000:.2f} ms, "
            f"worst {worst:.2f} ms; it is in the latencies, equally for all"
        )
    if max(busy) > BUSY_CORES:
        lines.append(
            "- **DISTURBED RUN**: others used the machine; only what was measured side by side means much"
        )
    spoilt = [name for name, one in _lateness(result) if one > LATE_US]
    if spoilt:
        lines.append(f"- **DOUBTFUL**, for the generator was late there: {', '.join(spoilt)}")
    return lines


def _lateness(result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for cell in result.get("cost", {}).get("cells", ()):
        for name, one in cell["proxies"].items():
            if one["half"]:
                yield f"half load of {name}", medians(one)["half_late_p99_us"]
    pool = result.get("pool")
    if pool:
        for cell in (*pool["loads"], pool["mixed"], pool["slow"]):
            for name, one in cell["proxies"].items():
                yield f"{cell['title']} of {name}", one["late_p99_us"]


def markdown(result: dict[str, Any], chart: str) -> str:
    lines = [f"# The load balancer, {result['date']} ({result['mode']} run)", ""]
    lines += [f"- {name}: {value}" for name, value in result["machine"].items()]
    lines += [*_doubts(result), ""]
    if chart:
        lines += [f"![cost, bandwidth and balance]({chart})", ""]
    lines += ["## Bars", "", "| asked | found | |", "|---|---|---|"]
    lines += [f"| {asked} | {got} | {'met' if met else '**not met**'} |" for asked, got, met in bars(result)]
    lines += [
        "",
        *tables.cost(result),
        *tables.bandwidth(result),
        *tables.pool(result),
        *tables.streams(result),
    ]
    lines += ["## Versions", "", *(f"- {name}: {value}" for name, value in result["versions"].items())]
    if result["skipped"]:
        lines += ["", "## Skipped", "", *(f"- {name}: {why}" for name, why in result["skipped"].items())]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Write NAME.json, NAME.md and, where matplotlib can be had, NAME.png; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, text, chart = (folder / f"{name}{end}" for end in (".json", ".md", ".png"))
    raw.write_text(json.dumps(result, indent=1) + "\n")
    drawn = _draw(raw, chart)
    text.write_text(markdown(result, chart.name if drawn else ""))
    return [text, raw, *([chart] if drawn else [])]


def _draw(raw: Path, chart: Path) -> bool:
    try:
        python = prepare("report")
    except Unavailable as error:
        print(f"no chart: {error}")
        return False
    command = [str(python), str(BENCH / "balance" / "chart.py"), str(raw), str(chart)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        print(f"no chart: {done.stderr.strip()[-300:]}")
    return done.returncode == 0
