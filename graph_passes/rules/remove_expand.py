"""Expand(x, sizes) -> x where x has these sizes, or would be broadcast to them anyway"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule
from graph_passes.sizes import elements, size_elements
from graph_passes.values import is_standard, same_shape

# Elementwise operators of two inputs, which broadcast
BINARY = ("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Or", "Pow", "Sub", "Xor")


def rewrite(node: ir.Node) -> ir.Value:
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    target, sizes = elements(node.inputs[1]), size_elements(value)
    if same_shape(value, output):
        return value
    if target is not None and sizes is not None and len(target) <= len(sizes):
        tail = sizes[len(sizes) - len(target) :]
        if all(asked in (1, size) for asked, size in zip(target, tail, strict=True)):
            return value
    if _broadcast_anyway(output):
        return value
    raise Refused("the tensor grows, and what uses it needs that")


def _broadcast_anyway(output: ir.Value) -> bool:
    """Whether every user is an elementwise operator whose other input has the shape of the expanded tensor already."""
    if output.is_graph_output() or not output.uses():
        return False
    for use in output.uses():
        if not is_standard(use.node, *BINARY):
            return False
        other = use.node.inputs[1 - use.idx]
        if other is output or not same_shape(other, use.node.outputs[0]):
            return False
    return True


REMOVE_EXPAND = Rule("remove expands", ("Expand",), rewrite)
