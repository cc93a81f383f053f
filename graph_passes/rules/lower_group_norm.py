"""GroupNormalization(x, s, b, g) -> Reshape(InstanceNormalization(Reshape(x, [N, g, -1]), 1, 0), [N, C, ...]) * s + b

As exporters write it up to opset 20, so that what knows that form knows this one too. Wu and He, "Group Normalization", 2018, equation 1.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.norms import scaled
from graph_passes.rule import Refused, Rule, emit, emit_constant
from graph_passes.values import dimensions, integer, operands, static_shape


def rewrite(node: ir.Node) -> ir.Value:
    x, scale, bias = operands(node)
    shape, groups = static_shape(x), integer(node, "num_groups", 1)
    if shape is None:
        raise Refused("the shape of the input is not made of numbers alone")
    if x.dtype != ir.DataType.FLOAT:
        raise Refused(f"the input is {x.dtype or 'of unknown type'}, and the ones and zeros are FLOAT")
    if dimensions(scale) != (shape[1],):
        raise Refused("the scale is not known to hold one value per channel")  # up to opset 20: one per group, another function
    grouped = emit(node, "Reshape", [x, emit_constant(node, np.array([shape[0], groups, -1], np.int64))], suffix="_groups")
    grouped.type, grouped.shape = x.type, ir.Shape([shape[0], groups, int(np.prod(shape[1:])) // groups])
    neutral = [emit_constant(node, np.full(groups, number, np.float32)) for number in (1, 0)]
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    normalized = emit(node, "InstanceNormalization", [grouped, *neutral], {"epsilon": epsilon})
    normalized.type, normalized.shape = x.type, grouped.shape
    back = emit(node, "Reshape", [normalized, emit_constant(node, np.array(shape, np.int64))], suffix="_channels")
    return scaled(node, back, scale, bias, len(shape) - 2)


LOWER_GROUP_NORM = Rule("lower group norms", ("GroupNormalization",), rewrite)
