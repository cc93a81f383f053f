"""Dropout(x) -> x, at inference"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule
from graph_passes.values import constant


def rewrite(node: ir.Node) -> ir.Value:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None:
        known = constant(training)
        if known is None or bool(known):
            raise Refused("the node may be in training mode")
    assert node.inputs[0] is not None
    return node.inputs[0]


REMOVE_DROPOUT = Rule("remove dropout", ("Dropout",), rewrite)
