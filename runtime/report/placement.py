"""The plan of an accelerator as a map: a line per component, each node in the order of the graph, coloured by the partition that has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from runtime.manifest import ComponentEntry

COLOURS = ("var(--warn)", "var(--series-1)", "var(--series-2)", "var(--series-3)", "var(--series-4)")  # first: what falls out, to the CPU
WIDTH, HEIGHT = 1000, 18


def maps(components: Mapping[str, ComponentEntry]) -> list[dict[str, Any]]:
    """A row for each component that has a plan: {name, drawing, partitions, taken, nodes, megabytes that cross borders, host, faults}."""
    return [
        {
            "name": name,
            "drawing": drawing(entry.plan["map"], entry.plan["nodes"]),
            "partitions": len(entry.plan["partitions"]),
            "taken": entry.plan["taken"],
            "nodes": entry.plan["nodes"],
            "megabytes": entry.plan["crossing_bytes"] / 1e6,
            "host": ", ".join(port.name for port in entry.host.outputs) if entry.host else "",
            "faults": entry.plan["faults"],
        }
        for name, entry in components.items()
        if entry.plan is not None
    ]


def drawing(runs: list[list[int]], nodes: int) -> Markup:
    """Runs of [partition, nodes] as bars side by side, as an inline SVG; partition 0 is the CPU."""
    bars, start = [], 0
    for place, length in runs:
        colour = COLOURS[0] if place == 0 else COLOURS[1 + (place - 1) % (len(COLOURS) - 1)]
        x, width = WIDTH * start / nodes, WIDTH * length / nodes
        bars.append(f'<rect x="{x:.2f}" width="{width:.2f}" height="{HEIGHT}" fill="{colour}"/>')
        start += length
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{"".join(bars)}</svg>')
