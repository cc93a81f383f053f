"""Gemm(x, W) -> Gemm(x, W, 0)

XNNPACK's provider asks for the shape of the third input before it asks whether there is one, and the process dies of it (ONNX Runtime's
issue 28541). Its kernel adds a bias in any case.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit, emit_constant
from graph_passes.values import integer, operands, static_shape


def rewrite(node: ir.Node) -> ir.Value:
    x, matrix, *rest = operands(node)
    sizes = static_shape(matrix)
    if rest:
        raise Refused("it has a bias already")
    if sizes is None or x.dtype != ir.DataType.FLOAT:
        raise Refused("it is not known to be rows of FLOAT times a matrix of known size")
    zeros = np.zeros(sizes[0] if integer(node, "transB", 0) else sizes[1], np.float32)
    return emit(node, "Gemm", [x, matrix, emit_constant(node, zeros)], dict(node.attributes))


ADD_ZERO_BIAS = Rule("add zero biases", ("Gemm",), rewrite)
