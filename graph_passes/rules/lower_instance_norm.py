"""InstanceNormalization(x, s, b) -> (x - mean) / sqrt(variance + epsilon) * s + b, by ReduceMean, Sub, Mul, Sqrt and Div

Ulyanov et al., "Instance Normalization", 2016, equation 3. With a Reshape in front and behind it is also GroupNorm, as exporters write it.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.norms import scaled, standardized
from graph_passes.rule import Refused, Rule
from graph_passes.values import dimensions, operands


def rewrite(node: ir.Node) -> ir.Value:
    x, scale, bias = operands(node)
    shape = dimensions(x)
    if shape is None or len(shape) < 3:
        raise Refused("the input is not known to be [batch, channels, ...]")
    if x.dtype != ir.DataType.FLOAT:
        raise Refused(f"the input is {x.dtype or 'of unknown type'}, and the epsilon is kept as FLOAT")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return scaled(node, standardized(node, x, range(2, len(shape)), epsilon), scale, bias, len(shape) - 2)


LOWER_INSTANCE_NORM = Rule("lower instance norms", ("InstanceNormalization",), rewrite)
