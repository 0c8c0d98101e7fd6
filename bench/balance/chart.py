"""`python chart.py RESULT.json CHART.png`: one picture of a run.  Needs matplotlib; imports nothing of ours.

Rows of panels, of which those are drawn whose part was measured: cost; target against measured and
its error; the step response; latency against load; delay of streamed chunks.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

INK, GRID, QUIET = "#1e293b", "#e2e8f0", "#64748b"
COLOURS = {
    "ours": "#c2410c",
    "ours-unlimited": "#fdba74",
    "ours-local": "#9a3412",
    "nginx": "#15803d",
    "nginx-buffered": "#4ade80",
    "nginx-rr": "#a3a3a3",
    "haproxy": "#1d4ed8",
    "haproxy-queue": "#93c5fd",
    "tbf": "#64748b",
}
ROW_HEIGHT = 4.1


def tidy(place: Any, title: str, note: str) -> None:
    place.set_title(f"{title}\n", loc="left", fontsize=11, fontweight="bold")
    place.text(0, 1.025, note, transform=place.transAxes, fontsize=9, color=QUIET)
    place.grid(True, color=GRID, zorder=0)
    place.set_axisbelow(True)
    place.tick_params(length=0, which="both", labelcolor=INK)
    for side in place.spines.values():
        side.set_visible(False)


def plain(axis: Any, ticks: list[float]) -> None:
    """These ticks and no others, as plain numbers."""
    axis.set_major_locator(ticker.FixedLocator(ticks))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


# ---------------------------------------------------------------------- cost


def bars(place: Any, rows: list[tuple[str, float, str]], title: str, note: str) -> None:
    """(label, value, colour), the first on top."""
    rows = rows[::-1]
    values = [value for _, value, _ in rows]
    place.barh(range(len(rows)), values, color=[colour for _, _, colour in rows], height=0.72, zorder=2)
    for number, value in enumerate(values):
        text = f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
        place.annotate(
            text, (value, number), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
        )
    place.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=9)
    place.set_xlim(0, max(values, default=1) * 1.15)
    tidy(place, title, note)
    place.grid(False, axis="y")


def without_gaps(place: Any) -> None:
    """The rows that only keep groups apart carry no figure."""
    for text in list(place.texts):
        if text.get_text() == "0.0":
            text.remove()


def of_rounds(one: dict[str, Any], figure: str) -> float:
    return float(statistics.median(round_[figure] for round_ in one["rounds"]))


def cost(places: Any, found: dict[str, Any]) -> None:
    rows: list[tuple[str, float, str]] = []
    for cell in found["cells"]:
        if rows:
            rows.append(("", 0.0, "none"))
        for name, one in cell["proxies"].items():
            if name in ("ours", "nginx", "nginx-buffered", "haproxy"):
                rows.append((f"{short(cell['name'])}  {name}", of_rounds(one, "cpu_us"), COLOURS[name]))
    bars(
        places[0], rows, "CPU per proxied request", "us; 1 KB, 32 connections, access log on; less is better"
    )
    without_gaps(places[0])
    rows = [
        (name, of_rounds(one, "cpu_us"), COLOURS["ours" if name.startswith("ours") else "nginx"])
        for name, one in found["pairs"].items()
    ]
    bars(places[1], rows, "Proxy and instance together", "CPU us per request; less is better")


def throughput(place: Any, found: dict[str, Any]) -> None:
    rows: list[tuple[str, float, str]] = []
    for cell in found["cells"][:3]:
        if rows:
            rows.append(("", 0.0, "none"))
        for name in ("ours", "nginx", "haproxy"):
            if name in cell["proxies"]:
                rate = of_rounds(cell["proxies"][name], "rate")
                rows.append((f"{short(cell['name'])}  {name}", rate, COLOURS[name]))
    bars(place, rows, "Requests per second", "1 KB, 32 connections; the load generator shares the cores")
    without_gaps(place)
    place.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def short(cell: str) -> str:
    names = {"echo": "instance", "constant": "constant", "constant-unix": "Unix", "plain": "foreign"}
    return names.get(cell, cell)


# ---------------------------------------------------------------------- bandwidth


def targets(places: Any, found: dict[str, Any]) -> None:
    left, right = places
    rates = sorted({one["mbps"] for one in found["rates"]} | {one["mbps"] for one in found["tbf"]})
    left.plot(rates, rates, color=INK, linewidth=0.8, label="target")
    ours = [(one["mbps"], one["rate"] / 1e6) for one in found["rates"]]
    tbf = [(one["mbps"], one["rate"] / 1e6) for one in found["tbf"]]
    for place, errors in ((left, False), (right, True)):
        for points, colour, marker, label in (
            (tbf, COLOURS["tbf"], "x", "tc tbf (its headers count, too)"),
            (ours, COLOURS["ours"], "o", "twofold balance"),
        ):
            values = [(seen / wanted - 1) * 100 if errors else seen for wanted, seen in points]
            wanted = [wanted for wanted, _ in points]
            place.scatter(wanted, values, color=colour, marker=marker, s=44, alpha=0.8, label=label, zorder=3)
        place.set_xscale("log")
        plain(place.xaxis, rates)
        place.set_xlabel("target, Mbit/s", color=INK)
        place.legend(frameon=False, fontsize=9, loc="best")
    left.set_yscale("log")
    plain(left.yaxis, rates)
    right.axhspan(-1, 1, color="#dcfce7", zorder=1)
    tidy(left, "Bandwidth: target and measured", "Mbit/s of HTTP, both directions together")
    tidy(right, "Its error", f"% of the target over {found['seconds']:g} s; the band is what is allowed")


def step(place: Any, found: dict[str, Any]) -> None:
    hold, width = found["hold"], 5  # bins of 10 ms, averaged over 50 ms
    end = hold * len(found["mbps"])
    place.step([hold * n for n in range(len(found["mbps"]) + 1)], [*found["mbps"], found["mbps"][-1]],
               where="post", color=INK, linewidth=1.0, label="target")  # fmt: skip
    for who, label in (("tbf", "tc tbf"), ("ours", "twofold balance")):
        if who in found:
            trace = found[who]["trace"]
            smooth = [sum(trace[at : at + width]) / width for at in range(0, len(trace) - width + 1, width)]
            times = [(at + 0.5) * width / 100 for at in range(len(smooth))]
            place.plot(times, smooth, color=COLOURS[who], linewidth=1.4, label=label, alpha=0.9)
    place.set_xlim(0, end)
    place.set_ylim(0, max(found["mbps"]) * 1.35)
    place.set_xlabel("s", color=INK)
    place.legend(frameon=False, fontsize=9, ncols=3, loc="upper right")
    tidy(place, "A live edit, under load", "Mbit/s in bins of 50 ms, from the admin API")


# ---------------------------------------------------------------------- balance


def latency(place: Any, found: dict[str, Any], figure: str, title: str) -> None:
    cells = sorted(found["loads"], key=lambda cell: cell["load"])
    loads = [cell["load"] * 100 for cell in cells]
    best = [cell["central_queue"][figure] / 1000 for cell in cells]
    place.plot(loads, best, color=INK, linestyle="--", linewidth=1.0, label="central queue (computed)")
    for name in dict.fromkeys(name for cell in cells for name in cell["proxies"]):
        points = [
            (cell["load"] * 100, cell["proxies"][name][figure] / 1000, cell["proxies"][name]["title"])
            for cell in cells
            if name in cell["proxies"]
        ]
        first = 5 if name == "ours" else 3
        place.plot(
            [at for at, _, _ in points], [value for _, value, _ in points],
            color=COLOURS[name], marker="o", markersize=4, linewidth=1.6, label=points[0][2], zorder=first,
        )  # fmt: skip
    place.set_ylim(bottom=0)
    place.set_xticks(loads, [f"{one:.0f} %" for one in loads])
    place.set_xlabel("load", color=INK)
    place.legend(frameon=False, fontsize=9, loc="upper left")
    tidy(place, title, "ms from the intended time; 8 workers, exponential work of 10 ms")


def hard_cases(place: Any, found: dict[str, Any]) -> None:
    rows: list[tuple[str, float, str]] = []
    for cell, title in ((found["mixed"], "1 and 100 ms"), (found["slow"], "one slowed 10x")):
        if rows:
            rows.append(("", 0.0, "none"))
        for name, one in cell["proxies"].items():
            rows.append((f"{title}  {name}", one["p99_us"] / 1000, COLOURS[name]))
    bars(
        place,
        rows,
        "p99 where it is hard to spread",
        "ms; mixed work at 70 % load, one slow instance at 50 %",
    )
    without_gaps(place)


def streams(place: Any, found: dict[str, Any]) -> None:
    rows: list[tuple[str, float, str]] = []
    for figure, title in (("p50_us", "p50"), ("p99_us", "p99"), ("max_us", "slowest")):
        if rows:
            rows.append(("", 0.0, "none"))
        for name, one in found["proxies"].items():
            rows.append((f"{title}  {name}", one[figure] / 1000, COLOURS.get(name, QUIET)))
    note = f"ms from sent to read; {found['streams']} streams, the line is what is allowed"
    bars(place, rows, "Delay of a chunk of a streamed answer", note)
    without_gaps(place)
    place.axvline(5, color=INK, linestyle="--", linewidth=1.0)
    place.set_xlim(0, max(6.0, place.get_xlim()[1]))


def draw(result: dict[str, Any], path: Path) -> None:
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK})
    rows: list[tuple[float, Callable[[Any], None]]] = []
    if "cost" in result:
        rows.append((5.6, lambda places: cost(places, result["cost"])))
    if "bandwidth" in result:
        rows.append((ROW_HEIGHT, lambda places: targets(places, result["bandwidth"])))
    if "bandwidth" in result or "pool" in result:
        rows.append((ROW_HEIGHT, lambda places: mixed_row(places, result)))
    if "pool" in result:
        rows.append((ROW_HEIGHT, lambda places: load_row(places, result["pool"])))
    if "streams" in result:
        rows.append((ROW_HEIGHT, lambda places: stream_row(places, result)))
    if not rows:
        raise SystemExit("nothing was measured")
    heights = [height for height, _ in rows]
    figure, axes = pyplot.subplots(
        len(rows), 2, figsize=(13.5, sum(heights) + 0.7), height_ratios=heights, squeeze=False
    )
    for (_, fill), places in zip(rows, axes, strict=True):
        fill(places)
    machine = result["machine"]
    figure.suptitle(
        f"twofold balance   ({machine['processor']}, {machine['cores']} cores, {result['date']})",
        x=0.012, ha="left", fontsize=12, fontweight="bold",
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1, 0.985), h_pad=2.2, w_pad=2.5)
    figure.savefig(path, dpi=110)


def mixed_row(places: Any, result: dict[str, Any]) -> None:
    if "bandwidth" in result:
        step(places[0], result["bandwidth"]["step"])
    else:
        places[0].set_axis_off()
    if "pool" in result:
        hard_cases(places[1], result["pool"])
    else:
        places[1].set_axis_off()


def load_row(places: Any, found: dict[str, Any]) -> None:
    latency(places[0], found, "p99_us", "p99 against load")
    latency(places[1], found, "p50_us", "p50 against load")


def stream_row(places: Any, result: dict[str, Any]) -> None:
    streams(places[0], result["streams"])
    if "cost" in result:
        throughput(places[1], result["cost"])
    else:
        places[1].set_axis_off()


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
