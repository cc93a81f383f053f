"""Transpose(x, perm=[0, 1, ...]) -> x"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule
from graph_passes.values import integers


def rewrite(node: ir.Node) -> ir.Value:
    order = integers(node, "perm")
    if order is None or order != list(range(len(order))):
        raise Refused("the order of the axes changes")
    assert node.inputs[0] is not None
    return node.inputs[0]


REMOVE_TRANSPOSE = Rule("remove transposes", ("Transpose",), rewrite)
