"""`python chart.py RESULT.json CHART.png`: a chart of one run.  Needs matplotlib; imports no other module.

Dots on logarithmic axes: the servers differ by a factor of a hundred, and a dot, unlike a bar,
has no baseline at zero.  Values stand beside the dots.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

OURS, PEER, INK, GRID = "#c2410c", "#64748b", "#1e293b", "#e2e8f0"
HEADLINE = ("rows", "46 B", 32)
SINGLE = ("rows", "46 B", 1)
PANELS = (
    ("CPU per request", "us, 32 connections; less is better", HEADLINE, "cpu_us"),
    ("Requests per second", "32 connections; more is better", HEADLINE, "rate"),
    ("Median latency", "us, 1 connection; less is better", SINGLE, "p50_us"),
)


def medians(result: dict[str, Any], cell: tuple[str, str, int], figure: str) -> dict[str, float]:
    for one in result["cells"]:
        if (one["model"], one["body"], one["connections"]) == cell:
            return {
                name: statistics.median(round_[figure] for round_ in rounds)
                for name, rounds in one["servers"].items()
            }
    return {}


def draw(result: dict[str, Any], path: Path) -> None:
    """One row per server, cheapest on top, one panel per figure."""
    costs = medians(result, HEADLINE, "cpu_us")
    order = sorted(costs, key=lambda name: -costs[name])
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK})
    height = 1.7 + 0.42 * len(order)
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(12.5, height), sharey=True)
    for place, (title, note, cell, value) in zip(axes, PANELS, strict=True):
        found = medians(result, cell, value)
        panel(place, title, note, [found.get(name, float("nan")) for name in order], order)
    axes[0].set_yticks(range(len(order)), [result["titles"][name] for name in order])
    for label, name in zip(axes[0].get_yticklabels(), order, strict=True):
        label.set_color(OURS if name.startswith("twofold") else INK)
    machine = result["machine"]
    figure.suptitle(
        f"46-byte JSON body, empty predict, 2 model processes   "
        f"({machine['processor']}, {machine['cores']} cores, {result['date']})",
        x=0.012,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    figure.tight_layout(rect=(0, 0, 1, 0.97), w_pad=2.5)
    figure.savefig(path, dpi=150)


def panel(place: Any, title: str, note: str, values: list[float], order: list[str]) -> None:
    colours = [OURS if name.startswith("twofold") else PEER for name in order]
    rows = range(len(order))
    place.set_xscale("log")
    place.scatter(values, rows, c=colours, s=62, zorder=3)
    for row, value, colour in zip(rows, values, colours, strict=True):
        text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        place.annotate(
            text, (value, row), xytext=(8, 0), textcoords="offset points", va="center", color=colour
        )
    real = [value for value in values if value == value]
    low, high = min(real) / 1.6, max(real) * 3
    place.set_xlim(low, high)
    place.set_ylim(-0.6, len(order) - 0.4)
    place.set_title(f"{title}\n", loc="left", fontsize=11, fontweight="bold")
    place.text(0, 1.02, note, transform=place.transAxes, fontsize=9, color=PEER)
    place.grid(True, color=GRID, zorder=0)
    place.tick_params(length=0, which="both", labelcolor=INK)
    narrow = high / low < 60  # room for 1-2-5 ticks
    place.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    place.xaxis.set_minor_locator(ticker.NullLocator())
    place.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for side in place.spines.values():
        side.set_visible(False)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
