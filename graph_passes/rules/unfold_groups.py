"""Instance(Reshape(x, [N, g, L])) -> Reshape(Instance(Reshape(x, [N, g, L / W, W])), [N, g, L]) for x: [N, C, ..., W]

Instance is InstanceNormalization. A group of a picture of 512 x 512 has millions of values, and CoreML loads no model with a dimension
above 16,384. Along the rows of the picture the same values fit, and no tensor has more than the 4 axes that phones take.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit, emit_constant
from graph_passes.values import producer, static_shape


def rewrite(node: ir.Node) -> ir.Value:
    fold = producer(node.inputs[0], "Reshape")
    before, folded = static_shape(fold.inputs[0]) if fold else None, static_shape(node.inputs[0])
    if fold is None or before is None or folded is None:
        raise Refused("the input is no Reshape between shapes of numbers")
    if len(folded) != 3 or len(before) < 3 or before[0] != folded[0] or folded[2] % before[-1]:
        raise Refused("the Reshape does not make [batch, groups, values] of rows")
    batch, groups, values = folded
    rows = np.array([batch, groups, values // before[-1], before[-1]], np.int64)
    unfolded = emit(node, "Reshape", [fold.inputs[0], emit_constant(node, rows)], suffix="_rows")
    normalized = emit(node, "InstanceNormalization", [unfolded, *node.inputs[1:]], dict(node.attributes))
    for value in (unfolded, normalized):
        value.type, value.shape = node.inputs[0].type, ir.Shape(rows.tolist())  # type: ignore[union-attr]  # it is no optional input
    return emit(node, "Reshape", [normalized, emit_constant(node, np.array(folded, np.int64))], suffix="_folded")


UNFOLD_GROUPS = Rule("unfold groups", ("InstanceNormalization",), rewrite)
