"""The report's charts as inline SVG that takes its colours and fonts from the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from runtime.report.numbers import quantity

# stand-ins that matplotlib can draw with, and the page's colours that take their place
INK, SOFT, GRID, LIMIT = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050501", "#050502", "#050503", "#050504")
PAGE_COLOURS = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)", LIMIT: "var(--warn)"}
PAGE_COLOURS |= {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)}
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and set in the page's font
    "font.size": 10,
    "text.color": SOFT,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
}
Series = Mapping[str, Sequence[tuple[float, float] | None]]  # per label a (median, 90th percentile) for each name
WIDE, NARROW = 8.8, 4.4  # inches: a desk's page and a phone's


def snr_over_steps(snr_db: Sequence[float], limit_db: float | None, width: float) -> str:
    """A line: SNR in dB of the latents against torch's after each step; dashed where the limit is."""

    def draw(axes: Axes) -> None:
        steps = range(1, len(snr_db) + 1)
        axes.plot(steps, snr_db, color=SERIES[0], linewidth=2, marker="o", markersize=4 if len(snr_db) <= 50 else 0)
        axes.annotate(f"{snr_db[-1]:.1f}", (len(snr_db), snr_db[-1]), (6, 0), textcoords="offset points", va="center", color=INK)
        if limit_db is not None:
            axes.axhline(limit_db, color=LIMIT, linewidth=1.5, linestyle=(0, (5, 3)))
            axes.annotate(f"limit {limit_db:g}", (1, limit_db), (0, 4), textcoords="offset points", color=LIMIT)
        axes.set_xlabel("step")
        axes.set_ylabel("SNR, dB")
        axes.set_ylim(min(0, *snr_db), max(*snr_db, limit_db or 0) * 1.12)
        axes.set_xlim(0.5, len(snr_db) * 1.06 + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, steps=[1, 2, 5, 10]))
        axes.grid(axis="y", linewidth=0.8)

    return _svg(draw, width, 2.9, f"snr{width:g}")


def latency(names: Sequence[str], series: Series, width: float, name: str = "latency") -> str:
    """Horizontal bars: per name and series the median in ms, with a line up to the 90th percentile. None: not measured.

    `name` keeps the ids of several such charts on a page apart.
    """

    def draw(axes: Axes) -> None:
        thickness = 0.72 / len(series)
        longest = max(p90 for values in series.values() for value in values if value for p90 in value)
        for number, (label, values) in enumerate(series.items()):
            colour = SERIES[number % len(SERIES)]
            for row, value in enumerate(values):
                if value is None:
                    continue
                median, p90 = value
                y = row - 0.36 + thickness * (number + 0.5)
                axes.barh(y, median, thickness * 0.9, color=colour, label=label if row == 0 else None)
                axes.plot((median, p90), (y, y), color=SOFT, linewidth=1.5)
                axes.plot((p90, p90), (y - thickness * 0.2, y + thickness * 0.2), color=SOFT, linewidth=1.5)
                axes.text(max(median, p90) + longest * 0.015, y, quantity(median), va="center", color=INK)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.14)
        axes.set_xlabel("median, ms (line: to the 90th percentile)")
        axes.grid(axis="x", linewidth=0.8)
        axes.spines["left"].set_visible(False)
        if len(series) > 1:
            axes.legend(loc="lower right")

    return _svg(draw, width, 0.8 + 0.36 * len(names) * max(1.0, 0.6 * len(series)), f"{name}{width:g}")


def _svg(draw: Callable[[Axes], None], width: float, height: float, name: str) -> str:
    """Draws a figure of `width` x `height` inches as an <svg> element. `name` keeps its ids apart from those of other charts."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):  # type: ignore[dict-item]  # typed with the literal name of each setting
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"; font-family: [^;\"]*", "", svg)  # the page's font, not matplotlib's
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(?:xlink:)?(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for stand_in, colour in PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    # hidden from screen readers: the element around it says what it shows
    return re.sub(r'<svg .*?(viewBox="[^"]*").*?>', r'<svg \1 aria-hidden="true" focusable="false">', svg, count=1, flags=re.DOTALL)
