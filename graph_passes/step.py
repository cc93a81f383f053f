"""One rewriting pass and the record of what it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Pass:
    """A named rewriting of a whole model, in place. `run` returns how many places it changed."""

    name: str
    run: Callable[[ir.Model], int]


@dataclass(frozen=True)
class Step:
    """What one pass of a pipeline did: the number of places changed, and the seconds it took."""

    name: str
    applied: int
    seconds: float


def run(model: ir.Model, passes: Sequence[Pass]) -> list[Step]:
    """Runs the passes in order on `model`, in place."""
    steps = []
    for each in passes:
        start = time.perf_counter()
        applied = each.run(model)
        steps.append(Step(each.name, applied, round(time.perf_counter() - start, 4)))
    return steps
