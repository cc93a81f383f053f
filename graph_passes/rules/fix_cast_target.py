"""CastLike(x, y) -> Cast(x, to=type(y))"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit


def rewrite(node: ir.Node) -> ir.Value:
    like = node.inputs[1]
    if like is None or like.dtype is None:
        raise Refused("the type to cast to is not known")
    return emit(node, "Cast", node.inputs[:1], {"to": like.dtype})


FIX_CAST_TARGET = Rule("fix cast targets", ("CastLike",), rewrite)
