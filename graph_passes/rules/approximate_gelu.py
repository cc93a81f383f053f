"""Gelu(x) -> h + h tanh(x p(min(x^2, 25))), h = x / 2;  Erf(x) -> tanh(z p(min(z^2, 25))), z = sqrt(2) x

p is the polynomial of degree 4 for which the largest error of the GELU is least (Lawson's iteration on 0 < x < 5.5; beyond 5 both sides
are x or 0 to 1e-6). Largest error of the GELU: 3.1e-6 in exact arithmetic, 3.6e-6 in float32; 110 dB for normal x. Erf by itself is off by
1.5e-5 at most: a GELU multiplies it by x / 2, which is small where it is. The published form
with x + 0.044715 x^3 (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016) is at 4.7e-4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit, emit_constant

COEFFICIENTS = (0.797827577, 0.0364699307, -0.000125476185, -3.04672007e-05, 1.11263181e-06)
PUBLISHED = (math.sqrt(2 / math.pi), math.sqrt(2 / math.pi) * 0.044715)  # what Gelu with approximate="tanh" is defined by
LARGEST_SQUARE = 25.0


def rewrite(node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    if x is None or x.dtype != ir.DataType.FLOAT:
        raise Refused("the input is not known to be FLOAT")
    if node.op_type == "Erf":
        z = emit(node, "Mul", [x, _scalar(node, math.sqrt(2))], suffix="_z")
        return _tanh(node, z, COEFFICIENTS, LARGEST_SQUARE)
    published = node.attributes.get_string("approximate", "none") == "tanh"
    tanh = _tanh(node, x, PUBLISHED, None) if published else _tanh(node, x, COEFFICIENTS, LARGEST_SQUARE)
    half = emit(node, "Mul", [x, _scalar(node, 0.5)], suffix="_half")
    return emit(node, "Add", [half, emit(node, "Mul", [half, tanh], suffix="_product")], suffix="_sum")


def _tanh(node: ir.Node, x: ir.Value, coefficients: Sequence[float], largest: float | None) -> ir.Value:
    """tanh(x p(x^2)), by Horner's rule."""
    square = emit(node, "Mul", [x, x], suffix="_square")
    if largest is not None:
        square = emit(node, "Min", [square, _scalar(node, largest)], suffix="_limited")
    value = _scalar(node, coefficients[-1])
    for power in reversed(range(len(coefficients) - 1)):
        product = emit(node, "Mul", [square, value], suffix=f"_times_{power}")
        value = emit(node, "Add", [product, _scalar(node, coefficients[power])], suffix=f"_plus_{power}")
    return emit(node, "Tanh", [emit(node, "Mul", [x, value], suffix="_argument")])


def _scalar(node: ir.Node, number: float) -> ir.Value:
    return emit_constant(node, np.array([number], np.float32))


APPROXIMATE_GELU = Rule("approximate GELU", ("Gelu", "Erf"), rewrite)
