"""x * 1, x / 1, x + 0, x - 0, 1 * x, 0 + x -> x"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule
from graph_passes.values import constant, dimensions

NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}


def rewrite(node: ir.Node) -> ir.Value:
    left, right = node.inputs
    for value, other in ((left, right), (right, left)):
        if value is right and node.op_type in ("Sub", "Div"):
            break
        number, sizes = constant(other), dimensions(value)
        if number is None or number.size != 1 or not np.all(number == NEUTRAL[node.op_type]):
            continue
        if sizes is None or number.ndim > len(sizes):
            raise Refused("the constant may add axes")
        assert value is not None
        return value
    raise Refused("no operand is the neutral element")


REMOVE_NEUTRAL_OPERAND = Rule("remove neutral operands", tuple(NEUTRAL), rewrite)
