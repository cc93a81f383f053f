"""Where(Expand(c, s), a, b) -> Expand(Where(c, a, b), s) for scalars a and b, so that what adds the mask can broadcast it"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit
from graph_passes.values import constant, producer


def rewrite(node: ir.Node) -> ir.Value:
    condition, yes, no = node.inputs
    expand = producer(condition, "Expand")
    if expand is None:
        raise Refused("the condition is not expanded")
    for each in (yes, no):
        array = constant(each)
        if array is None or array.ndim:
            raise Refused("a choice is no scalar constant")
    chosen = emit(node, "Where", [expand.inputs[0], yes, no], suffix="_narrow")
    chosen.type, chosen.shape = yes.type, expand.inputs[0].shape  # type: ignore[union-attr]  # neither input is optional
    return emit(node, "Expand", [chosen, expand.inputs[1]])


SINK_EXPAND = Rule("sink expands", ("Where",), rewrite)
