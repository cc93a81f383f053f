"""LayerNormalization(x, s, b, axis) -> (x - mean) / sqrt(variance + epsilon) * s + b, by ReduceMean, Sub, Mul, Sqrt and Div

Ba et al., "Layer Normalization", 2016, equation 4.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.norms import scaled, standardized
from graph_passes.rule import Refused, Rule
from graph_passes.values import dimensions, integer, operands


def rewrite(node: ir.Node) -> ir.Value:
    x, scale, *rest = operands(node)
    shape = dimensions(x)
    if shape is None:
        raise Refused("the rank of the input is not known")
    if x.dtype != ir.DataType.FLOAT:
        raise Refused(f"the input is {x.dtype or 'of unknown type'}, and the epsilon is kept as FLOAT")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Refused("the mean or the deviation is asked for too")
    axes = range(integer(node, "axis", -1) % len(shape), len(shape))
    return scaled(node, standardized(node, x, axes, node.attributes.get_float("epsilon", 1e-5)), scale, rest[0] if rest else None)


LOWER_LAYER_NORM = Rule("lower layer norms", ("LayerNormalization",), rewrite)
