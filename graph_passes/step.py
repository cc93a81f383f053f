"""One rewriting pass and the record of what it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Outcome:
    """What a pass that weighs each place did: how many it changed, a sentence for each of those, and one for each that it left."""

    applied: int
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass:
    """A named rewriting of a whole model, in place. `run` returns how many places it changed, or that and its reasons.

    `refused`, where a pass has it, is asked after the run: one sentence for each place that the pass is made for and left alone.
    """

    name: str
    run: Callable[[ir.Model], int | Outcome]
    refused: Callable[[ir.Model], list[str]] | None = None


@dataclass(frozen=True)
class Step:
    """What one pass of a pipeline did: the number of places changed, the seconds it took, the places it refused and why.

    `notes` say what was chosen at the places that were changed, where there was a choice.
    """

    name: str
    applied: int
    seconds: float
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def run(model: ir.Model, passes: Sequence[Pass]) -> list[Step]:
    """Runs the passes in order on `model`, in place."""
    steps = []
    for each in passes:
        start = time.perf_counter()
        result = each.run(model)
        outcome = result if isinstance(result, Outcome) else Outcome(result)
        refused = (*outcome.refused, *(each.refused(model) if each.refused else ()))
        steps.append(Step(each.name, outcome.applied, round(time.perf_counter() - start, 4), refused, outcome.notes))
    return steps
