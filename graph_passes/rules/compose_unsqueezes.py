"""Unsqueeze(Unsqueeze(x, a), b) -> Unsqueeze(x, a') where a' holds the axes of both in the final shape"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit, emit_constant
from graph_passes.values import constant, dimensions, producer


def rewrite(node: ir.Node) -> ir.Value:
    inner = producer(node.inputs[0], "Unsqueeze")
    if inner is None:
        raise Refused("the input is no Unsqueeze")
    first, second, sizes = constant(inner.inputs[1]), constant(node.inputs[1]), dimensions(inner.inputs[0])
    if first is None or second is None or sizes is None:
        raise Refused("the axes or the rank are only known at run time")
    middle = len(sizes) + first.size
    final = middle + second.size
    added = {int(axis) % final for axis in second}
    kept = [axis for axis in range(final) if axis not in added]
    added |= {kept[int(axis) % middle] for axis in first}
    return emit(node, "Unsqueeze", [inner.inputs[0], emit_constant(node, np.array(sorted(added), np.int64))])


COMPOSE_UNSQUEEZES = Rule("compose unsqueezes", ("Unsqueeze",), rewrite)
