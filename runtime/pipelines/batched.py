"""Runs a graph on any number of rows, whatever batch it was made for."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from runtime.session import Sessions


def run(
    sessions: Sessions,
    component: str,
    inputs: Mapping[str, np.ndarray],
    timings: dict[str, list[float]],
    at_most: int | None = None,
) -> dict[str, np.ndarray]:
    """Runs `component` on inputs with B rows each (the first axis); numbers (rank 0) hold for all rows. Returns outputs of B rows.

    The first input's first axis is the batch. Where the graph fixes it, it is called as often as B needs, the last time with its
    last row repeated; else it is called once, or with at most `at_most` rows at a time. Appends the seconds of it all, without
    loading, to `timings[component]`. Errors: those of `Sessions.run`.
    """
    ports = sessions.inputs(component)
    rows = max(len(array) for array in inputs.values() if array.ndim)
    batch = sessions.batch(component, rows)
    stride = batch if isinstance(batch, int) else min(rows, at_most or rows)
    calls = []
    for first in range(0, rows, stride):
        chosen = np.arange(first, first + stride if isinstance(batch, int) else min(first + stride, rows)).clip(max=rows - 1)
        feeds = {}
        for name, array in inputs.items():
            shape = ports[name].shape if name in ports else ()
            if array.ndim:
                feeds[name] = array[chosen]
            elif shape:  # a timestep per row, or one for all of them
                axis = shape[0]
                feeds[name] = np.full(len(chosen) if axis == batch else axis if isinstance(axis, int) else 1, array)
            else:
                feeds[name] = array
        calls.append(feeds)
    sessions.load(component, calls[0])
    start = time.perf_counter()
    parts = []
    for index, feeds in enumerate(calls):
        parts.append({name: output[: rows - index * stride] for name, output in sessions.run(component, feeds).items()})
    timings.setdefault(component, []).append(time.perf_counter() - start)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
