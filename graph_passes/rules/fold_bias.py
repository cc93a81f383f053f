"""Add(Gemm(a, B), c) -> Gemm(a, B, c) for c: [N], also where a Reshape stands between them that keeps the last axis"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit
from graph_passes.values import is_constant, only_user, producer, static_shape


def rewrite(node: ir.Node) -> ir.Value:
    first, second = node.inputs
    bias, value = (first, second) if is_constant(first) else (second, first)
    if not is_constant(bias):
        raise Refused("nothing constant is added")
    reshape = producer(value, "Reshape")
    gemm = producer(reshape.inputs[0] if reshape else value, "Gemm")
    if gemm is None or len(gemm.inputs) > 2:
        raise Refused("it is added to no Gemm that has no C yet")
    product, made, given = static_shape(gemm.outputs[0]), static_shape(value), static_shape(bias)
    if product is None or made is None or made[-1] != product[1] or given != product[1:]:
        raise Refused("it is not one number for each column of the product")
    if only_user(gemm.outputs[0], "Reshape" if reshape else "Add") is None or (reshape and only_user(reshape.outputs[0], "Add") is None):
        raise Refused("the product is used without it too")
    total = emit(node, "Gemm", [*gemm.inputs, bias], dict(gemm.attributes))
    if reshape is None:
        return total
    total.type, total.shape = bias.type, gemm.outputs[0].shape
    return emit(node, "Reshape", [total, reshape.inputs[1]], dict(reshape.attributes), suffix="_rows")


FOLD_BIAS = Rule("fold biases", ("Add",), rewrite)
