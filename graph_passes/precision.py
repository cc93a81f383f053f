"""What follows a target's pipeline where a package has less than float32."""

from __future__ import annotations

from graph_passes.passes.half import Measure, half
from graph_passes.passes.masks import BOUND_MASKS
from graph_passes.passes.names import NAME_NODES
from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.step import Pass


def lowered(precision: str, target: str, measure: Measure | None) -> tuple[Pass, ...]:
    """The passes of a precision. `measure` tells the ranges of a graph's values, where the choice is to be made by them.

    fp32 and bf16 need none here, nor does fp16 for qnn: kernels and QNN's compiler do the converting there.
    """
    if precision == "fp16" and target != "qnn":
        return (BOUND_MASKS, REMOVE_UNUSED, half(measure), REMOVE_UNUSED, NAME_NODES)
    return ()
