"""Reshape(x, [computed sizes]) -> Reshape(x, [constants, 0 for a size of x in its place, one -1])"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit, emit_constant
from graph_passes.sizes import reshape_target, size_elements
from graph_passes.values import constant


def rewrite(node: ir.Node) -> ir.Value:
    if constant(node.inputs[1]) is not None:
        raise Refused("the target is a constant already")
    target, sizes, made = reshape_target(node), size_elements(node.inputs[0]), size_elements(node.outputs[0])
    if target is None or sizes is None:
        raise Refused("the rank of the input or of the output is not known")
    if 0 in target:
        raise Refused("the tensor has no elements")
    fixed = []
    for axis, asked in enumerate(target):
        known = {asked} | ({made[axis]} if made is not None and len(made) == len(target) else set())
        number = next((each for each in known if isinstance(each, int) and each > 0), None)
        if number is not None:
            fixed.append(number)
        elif axis < len(sizes) and sizes[axis] in known:
            fixed.append(0)
        else:
            fixed.append(-1)
    if fixed.count(-1) > 1:
        raise Refused("more than one size is new and only known at run time")
    value = emit(node, "Reshape", [node.inputs[0], emit_constant(node, np.array(fixed, np.int64))], {"allowzero": 0})
    # what was read from the computed target would be lost with it: a constant one says less about the shape
    named = [sizes[axis] if size == 0 else target[axis] if size == -1 else size for axis, size in enumerate(fixed)]
    value.shape = ir.Shape([size if isinstance(size, str) or (isinstance(size, int) and size > 0) else None for size in named])
    return value


FIX_RESHAPE_TARGET = Rule("fix reshape targets", ("Reshape",), rewrite)
