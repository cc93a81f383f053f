"""Concat(x) -> x"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule


def rewrite(node: ir.Node) -> ir.Value:
    if len(node.inputs) != 1:
        raise Refused("several tensors are joined")
    assert node.inputs[0] is not None
    return node.inputs[0]


REMOVE_CONCAT = Rule("remove concats", ("Concat",), rewrite)
