"""Transpose(Transpose(x, perm=p), perm=q) -> Transpose(x, perm=[p[i] for i in q])"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit
from graph_passes.values import integers, producer


def rewrite(node: ir.Node) -> ir.Value:
    inner = producer(node.inputs[0], "Transpose")
    if inner is None:
        raise Refused("the input is no Transpose")
    first, second = integers(inner, "perm"), integers(node, "perm")
    if first is None or second is None:
        raise Refused("a Transpose that reverses all axes is left alone")
    return emit(node, "Transpose", inner.inputs, {"perm": [first[axis] for axis in second]})


COMPOSE_TRANSPOSES = Rule("compose transposes", ("Transpose",), rewrite)
