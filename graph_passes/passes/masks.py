"""softmax(x + mask of -3.4e38) -> softmax(x + mask of -10,000), a number that float16 has, or of -100, which leaves 16 bits to scores

exp(x - 10,000) is 0 in float32 as long as the scores are within 9,000 of each other, and exp(x - 100) is as good as 0, so the graph
computes what it did.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from graph_passes.step import Pass
from graph_passes.values import add_initializer, constant, is_standard

AS_GOOD_AS_INFINITE = -1e30
# What stands between a mask and the scores that it is added to
CARRIERS = ("Add", "Concat", "Expand", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where")


def bound_masks(masked: float) -> Pass:
    """The pass that writes `masked` for minus infinity."""
    return Pass("bound masks", functools.partial(_apply, masked=masked))


def _apply(model: ir.Model, masked: float) -> int:
    """Returns how many constants it replaced. One that reaches anything but a softmax is left as it is."""
    graph, bounded = model.graph, 0
    for value in list(graph.initializers.values()):
        array = constant(value)
        if array is None or array.dtype != np.float32 or not array.size or array.min() > AS_GOOD_AS_INFINITE or not _ends_in_softmax(value):
            continue
        tensor = ir.tensor(np.maximum(array, np.float32(masked)))
        value.replace_all_uses_with(add_initializer(graph, tensor, f"{value.name}_bounded"))
        bounded += 1
    return bounded


def _ends_in_softmax(value: ir.Value) -> bool:
    open_, seen = [value], {value}
    while open_:
        current = open_.pop()
        if current.is_graph_output():
            return False
        for use in current.uses():
            if is_standard(use.node, "Softmax"):
                continue
            if not is_standard(use.node, *CARRIERS):
                return False
            new = set(use.node.outputs) - seen
            seen |= new
            open_ += new
    return True
