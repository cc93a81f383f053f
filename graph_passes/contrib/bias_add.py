"""(x W + bias) + residual -> com.microsoft.BiasAdd(x W, bias, residual)

The CUDA kernel takes [batch, tokens, 320, 640 or 1280] (contrib_ops/cuda/diffusion/bias_add.cc), WebGPU's any width.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.contrib.nodes import TYPES, bias_of, insert
from graph_passes.rule import Refused, adopt, fusion, replace
from graph_passes.step import Pass
from graph_passes.values import dimensions, is_constant, is_standard, only_user, operands, other_operand, producer, same_shape

CUDA_WIDTHS = (320, 640, 1280)


def fuse_bias_add(widths: tuple[int, ...] = ()) -> Pass:
    """The pass for a kernel that takes these widths alone, or any."""

    def site(node: ir.Node) -> ir.Node:
        layer = _layer(node)
        assert layer is not None
        width = (dimensions(layer.outputs[0]) or (None,))[-1]
        if node.outputs[0].dtype not in TYPES:
            raise Refused(f"the sum is {node.outputs[0].dtype or 'of unknown type'}, and the kernel takes FLOAT and FLOAT16")
        if widths and width not in widths:
            raise Refused(f"the CUDA kernel takes {', '.join(map(str, widths[:-1]))} or {widths[-1]} channels, not {width}")
        return layer

    return fusion("fuse bias and residual", lambda node: _layer(node) is not None, site, _fuse)


def _layer(node: ir.Node) -> ir.Node | None:
    """The sum of a product and its bias that `node` alone adds a tensor of the same shape to, [batch, tokens, channels]."""
    if not is_standard(node, "Add"):
        return None
    for value in operands(node):
        layer, residual = producer(value, "Add"), other_operand(node, value)
        shape = dimensions(value) or ()
        if layer is None or len(shape) != 3 or not isinstance(shape[-1], int) or is_constant(residual):
            continue
        parts = bias_of(layer, shape[-1])
        if parts is not None and producer(parts[0], "MatMul") and only_user(value, "Add") is node and same_shape(residual, value):
            return layer
    return None


def _fuse(layer: ir.Node, node: ir.Node) -> None:
    parts = bias_of(layer, int((dimensions(layer.outputs[0]) or (0,))[-1] or 0))
    assert parts is not None
    result = insert(node, "BiasAdd", [*parts, other_operand(node, layer.outputs[0])], {}, node.name).outputs[0]
    adopt(result, node.outputs[0])
    replace(node, result)
