"""Reshape(reshape(x), target) -> Reshape(x, target); the inner reshape is any of Reshape, Squeeze, Unsqueeze, Flatten"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit
from graph_passes.rules.remove_reshape import RESHAPES
from graph_passes.sizes import elements, size_elements
from graph_passes.values import integer, producer


def rewrite(node: ir.Node) -> ir.Value:
    inner = producer(node.inputs[0], *RESHAPES)
    if inner is None:
        raise Refused("the input is no reshape")
    allowzero = integer(node, "allowzero", 0)
    target = elements(node.inputs[1])
    if not allowzero and target is None:
        raise Refused("the target may hold zeros")
    if not allowzero and target is not None and 0 in target:
        # a zero copies a size of the input, so the two inputs have to agree there
        before, between = size_elements(inner.inputs[0]), size_elements(node.inputs[0])
        for axis, each in enumerate(target):
            if each == 0 and (before is None or between is None or axis >= min(len(before), len(between)) or before[axis] != between[axis]):
                raise Refused("a zero of the target copies a size that the inner reshape makes")
    return emit(node, "Reshape", [inner.inputs[0], node.inputs[1]], {"allowzero": allowzero})


COMPOSE_RESHAPES = Rule("compose reshapes", ("Reshape",), rewrite)
