"""MatMul(x, W) -> Reshape(Gemm(Reshape(x, [M, K]), W), [..., N]) for x: [..., K] and a constant W: [K, N] or Transpose(W: [N, K])

A linear layer is a product of two matrices however many axes its input has. NNAPI takes it as such, as FULLY_CONNECTED, and in no other
form.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit, emit_constant
from graph_passes.values import integers, is_constant, operands, producer, static_shape


def rewrite(node: ir.Node) -> ir.Value:
    x, weight = operands(node)
    shape, sizes = static_shape(x), static_shape(weight)
    transpose = producer(weight, "Transpose")
    swapped = transpose is not None and integers(transpose, "perm") == [1, 0] and is_constant(transpose.inputs[0])
    if not swapped and not is_constant(weight):
        raise Refused("the second factor is no constant")
    if shape is None or sizes is None or len(sizes) != 2 or len(shape) < 2:
        raise Refused("it is not known to be rows of numbers times a matrix")
    matrix = transpose.inputs[0] if swapped and transpose is not None else weight
    flat = x
    if len(shape) > 2:
        flat = emit(node, "Reshape", [x, emit_constant(node, np.array([-1, shape[-1]], np.int64))], suffix="_flat")
        flat.type, flat.shape = x.type, ir.Shape([int(np.prod(shape[:-1])), shape[-1]])
    product = emit(node, "Gemm", [flat, matrix], {"transB": 1} if swapped else {})
    if len(shape) == 2:
        return product
    product.type, product.shape = x.type, ir.Shape([int(np.prod(shape[:-1])), sizes[1]])
    return emit(node, "Reshape", [product, emit_constant(node, np.array([*shape[:-1], sizes[1]], np.int64))], suffix="_rows")


MULTIPLY_FLAT = Rule("multiply linear layers flat", ("MatMul",), rewrite)
