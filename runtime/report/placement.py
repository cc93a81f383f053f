"""The plan of an accelerator as a map: a line per component, each node in the order of the graph, coloured by the partition that has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from runtime.manifest import ComponentEntry

# what falls out, to the CPU, must be seen among hundreds of partitions: these have one colour, neighbours in two shades
CPU, PARTITIONS = 'fill="var(--warn)"', ('fill="var(--series-1)"', 'fill="var(--series-1)" fill-opacity="0.5"')
WIDTH, HEIGHT = 1000, 20


def maps(components: Mapping[str, ComponentEntry]) -> list[dict[str, Any]]:
    """A row for each component that has a plan: {name, drawing, partitions (None: each node runs by itself), taken, nodes, share of the
    multiply-accumulates (None where they were not counted), megabytes that cross borders, host, faults, is_confirmed by the checker}."""
    return [
        {
            "name": name,
            "drawing": drawing(entry.plan["map"], entry.plan["nodes"]),
            "partitions": len(entry.plan["partitions"]) if entry.plan.get("is_compiled", True) else None,
            "taken": entry.plan["taken"],
            "nodes": entry.plan["nodes"],
            "share": _share(entry.plan.get("macs")),
            "megabytes": entry.plan["crossing_bytes"] / 1e6,
            "host": ", ".join(port.name for port in entry.host.outputs) if entry.host else "",
            "faults": entry.plan["faults"],
            "is_confirmed": entry.plan.get("checker") is not None,
        }
        for name, entry in components.items()
        if entry.plan is not None
    ]


def _share(macs: Mapping[str, int] | None) -> float | None:
    return 100 * macs["taken"] / macs["all"] if macs and macs["all"] else None


def drawing(runs: list[list[int]], nodes: int) -> Markup:
    """Runs of [partition, nodes] as bars side by side, as an inline SVG; partition 0 is the CPU."""
    bars, start = [], 0
    for place, length in runs:
        x, width = WIDTH * start / nodes, WIDTH * length / nodes
        bars.append(f'<rect x="{x:.2f}" width="{width:.2f}" height="{HEIGHT}" {PARTITIONS[place % 2 - 1] if place else CPU}/>')
        start += length
    shape = f'viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" shape-rendering="crispEdges"'
    return Markup(f'<svg {shape} aria-hidden="true">{"".join(bars)}</svg>')
