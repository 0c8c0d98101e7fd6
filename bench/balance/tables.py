"""The tables of the report, part by part; empty for a part that was not measured.  Pure."""

from __future__ import annotations

import math
import statistics
from typing import Any


def medians(one: dict[str, Any]) -> dict[str, float]:
    """Of the rounds of one proxy, errors summed; of half load, too, where it was measured."""
    figures = ("cpu_us", "rate", "p50_us", "p99_us")
    found = {name: float(statistics.median(round_[name] for round_ in one["rounds"])) for name in figures}
    found["errors"] = sum(round_["errors"] for round_ in one["rounds"])
    if one["half"]:
        for name in ("p50_us", "p99_us", "late_p50_us", "late_p99_us"):
            found[f"half_{name}"] = float(statistics.median(round_[name] for round_ in one["half"]))
    return found


def paired(one: dict[str, Any], other: dict[str, Any], figure: str, rounds: str = "rounds") -> float:
    """One proxy's figure as a part of another's of the same round, the median of all rounds.

    A shared machine is fast in one round and slow in the next; two proxies in one round meet the same.
    """
    return statistics.median(_parts(one, other, figure, rounds))


def uncertainty(one: dict[str, Any], other: dict[str, Any], figure: str, rounds: str = "rounds") -> float:
    """The standard error of what paired() finds; 1.2533 is the median's in units of the mean's."""
    parts = _parts(one, other, figure, rounds)
    return 1.2533 * statistics.stdev(parts) / math.sqrt(len(parts)) if len(parts) > 1 else math.inf


def _parts(one: dict[str, Any], other: dict[str, Any], figure: str, rounds: str) -> list[float]:
    """Of rounds that only one of them had, nothing is said."""
    both = zip(one[rounds], other[rounds], strict=False)
    return [float(mine[figure] / theirs[figure]) for mine, theirs in both]


# ---------------------------------------------------------------------- cost


def cost(result: dict[str, Any]) -> list[str]:
    found = result.get("cost")
    if not found:
        return []
    lines = [
        "## Cost of a proxied request",
        "",
        "1 KB POST over 32 kept-alive connections, access log and metrics on; CPU of all processes of the",
        "proxy. With `buffered log`, nginx writes through a buffer of 64 KB, otherwise line by line.",
        "`of nginx's`: CPU and requests/s, compared round by round, for the machine has fast and slow ones.",
        "",
    ]
    for cell in found["cells"]:
        lines += [f"### {cell['title']}", "", *_rounds(cell["proxies"]), *_half_load(cell)]
    lines += ["### Proxy and instance together", "", "Two model processes each; CPU of both.", ""]
    return [*lines, *_rounds(found["pairs"])]


def _rounds(known: dict[str, Any]) -> list[str]:
    lines = [
        "| | CPU us | least - most | requests/s | of nginx's | p50 ms | p99 ms | errors |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in known.values():
        nginx = known.get("nginx")
        parts = [f"{paired(one, nginx, name):.0%}" for name in ("cpu_us", "rate")] if nginx else []
        seen = medians(one)
        every = [round_["cpu_us"] for round_ in one["rounds"]]
        errors = f"**{seen['errors']:.0f}**" if seen["errors"] else "0"
        lines.append(
            f"| {one['title']} | {seen['cpu_us']:.1f} | {min(every):.1f} - {max(every):.1f} "
            f"| {seen['rate']:,.0f} | {', '.join(parts)} | {seen['p50_us'] / 1000:.2f} "
            f"| {seen['p99_us'] / 1000:.2f} | {errors} |"
        )
    return [*lines, ""]


def _half_load(cell: dict[str, Any]) -> list[str]:
    if not cell["half_rate"]:
        return []
    lines = [
        f"{cell['half_rate']:,.0f} requests/s at given times:",
        "",
        "| | p50 ms | p99 ms | generator late, p50 / p99 ms |",
        "|---|--:|--:|--:|",
    ]
    for one in cell["proxies"].values():
        if one["half"]:
            seen = medians(one)
            p50, p99, late50, late99 = (
                seen[f"half_{name}_us"] / 1000 for name in ("p50", "p99", "late_p50", "late_p99")
            )
            lines.append(f"| {one['title']} | {p50:.2f} | {p99:.2f} | {late50:.2f} / {late99:.2f} |")
    return [*lines, ""]


# ---------------------------------------------------------------------- bandwidth


def bandwidth(result: dict[str, Any]) -> list[str]:
    found = result.get("bandwidth")
    if not found:
        return []
    lines = [
        "## Bandwidth",
        "",
        "Bytes of HTTP on the client's side; `up` is the part that went to the instance. Bins of 100 ms.",
        "`burst`: what passed beyond the rate, at most; allowed is the depth of the bucket and one turn.",
        "",
        "| limit Mbps | up | measured Mbps | error | bins within 10 % | burst KiB | allowed KiB |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found["rates"]:
        mbps = one["rate"] / 1e6
        lines.append(
            f"| {one['mbps']:g} | {one['up'] / max(1, one['rate']):.0%} | {mbps:.3f} "
            f"| {mbps / one['mbps'] - 1:+.2%} | {one['within']:.0%} | {one['excess'] / 1024:.0f} "
            f"| {one['allowed'] / 1024:.0f} |"
        )
    if found["tbf"]:
        lines += ["", "The same reader behind `tc tbf`, which counts packets with their headers:", ""]
        lines += [
            "| limit Mbps | measured Mbps | error | bins within 10 % of measured |",
            "|--:|--:|--:|--:|",
        ]
        for one in found["tbf"]:
            mbps = one["rate"] / 1e6
            off = mbps / one["mbps"] - 1
            lines.append(f"| {one['mbps']:g} | {mbps:.3f} | {off:+.2%} | {one['steady']:.0%} |")
    return [*lines, "", *_steps(found["step"]), *_shares(found), *_loads(found)]


def _steps(step: dict[str, Any]) -> list[str]:
    edits = " to ".join(f"{one:g}" for one in step["mbps"])
    return [
        f"- {title}: steps {edits} Mbps done after "
        + " and ".join(f"{one:.0f} ms" for one in step[who]["settled_ms"])
        for who, title in (("ours", "twofold balance"), ("tbf", "tc tbf"))
        if who in step
    ]


def _shares(found: dict[str, Any]) -> list[str]:
    lines = [
        f"- {one['streams']} streams, {one['mbps']:.2f} Mbps: Jain {one['jain']:.5f}, largest share "
        f"{one['spread']:.3f} times the least"
        for one in found["fairness"]
    ]
    alone, small, elephant = (found["elephant"][name] for name in ("alone", "small", "elephant"))
    late = f"p99 {alone['p99_us'] / 1000:.1f} ms alone, {small['p99_us'] / 1000:.1f} ms beside an elephant"
    lines.append(f"- small ones: {late} ({elephant['statuses']}, {elephant['p50_us'] / 1000:.0f} ms each)")
    idle = f"{found['idle']['without']:.3f} Mbps without, {found['idle']['with']:.3f} with"
    return [*lines, f"- {found['idle']['connections']} idle connections: {idle}"]


def _loads(found: dict[str, Any]) -> list[str]:
    reject, limiter = found["reject"], found["limiter"]
    passed = f"good {reject['good_mbps']:.2f} Mbps, refused ones {reject['other_mbps']:.2f} Mbps"
    late = f"p99 of admitted {reject['p99_us'] / 1000:.0f} ms"
    cores = f"{limiter['unlimited']:.3f} cores unlimited, {limiter['limited']:.3f} with a limit of 100 Mbps"
    return [
        f"- twice the bandwidth offered: {reject['statuses']}, {passed}, {late}",
        f"- {limiter['exchanges']:,.0f} exchanges/s of 10 KB: {cores}",
        "",
    ]


# ---------------------------------------------------------------------- balance


def pool(result: dict[str, Any]) -> list[str]:
    found = result.get("pool")
    if not found:
        return []
    lines = [
        "## Balance",
        "",
        f"{found['instances']} instances of {found['workers']} workers, exponential sleeps of 10 ms as work,",
        "Poisson arrivals, the same for all; latency from the intended time. `central queue` is computed.",
        f"{found['seconds']:g} s each; mixed work, every tenth a long one, {found['mixed_seconds']:g} s.",
        "",
    ]
    for cell in (*found["loads"], found["mixed"], found["slow"]):
        best = cell["central_queue"]
        lines += [f"### {cell['title']}: {cell['rate']:,.0f} requests/s", ""]
        lines += [
            "| | p50 ms | p99 ms | shares | not 200 | generator late, p99 ms |",
            "|---|--:|--:|---|--:|--:|",
        ]
        lines += [f"| central queue | {best['p50_us'] / 1000:.2f} | {best['p99_us'] / 1000:.2f} | | | |"]
        for one in cell["proxies"].values():
            parts = " ".join(f"{part:.3f}" for part in one["shares"].values())
            bad = sum(count for status, count in one["statuses"].items() if status != "200")
            lines.append(
                f"| {one['title']} | {one['p50_us'] / 1000:.2f} | {one['p99_us'] / 1000:.2f} | {parts} "
                f"| {bad} | {one['late_p99_us'] / 1000:.2f} |"
            )
        lines.append("")
    return lines


# ---------------------------------------------------------------------- streams


def streams(result: dict[str, Any]) -> list[str]:
    found = result.get("streams")
    if not found:
        return []
    lines = ["## Streamed answers", ""]
    lines += [
        (
            f"{found['streams']} streams at a time, each of a chunk of {found['bytes']} bytes every "
            f"{found['pause_ms']:g} ms; time from when a chunk was sent until it was read."
        ),
        "",
        "| | chunks | p50 ms | p99 ms | max ms |",
        "|---|--:|--:|--:|--:|",
    ]
    for one in found["proxies"].values():
        times = " | ".join(f"{one[figure] / 1000:.2f}" for figure in ("p50_us", "p99_us", "max_us"))
        lines.append(f"| {one['title']} | {one['chunks']:,} | {times} |")
    return [*lines, ""]
