"""Cast(x: T, to=T) -> x"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule
from graph_passes.values import integer


def rewrite(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None or value.dtype is None:
        raise Refused("the type of the input is not known")
    if value.dtype != integer(node, "to", 0):
        raise Refused("the cast changes the type")
    return value


REMOVE_CAST = Rule("remove casts", ("Cast",), rewrite)
