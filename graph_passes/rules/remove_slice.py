"""Slice(x) of everything -> x"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule
from graph_passes.sizes import elements, size_elements
from graph_passes.values import constant


def rewrite(node: ir.Node) -> ir.Value:
    starts, ends, sizes = constant(node.inputs[1]), elements(node.inputs[2]), size_elements(node.inputs[0])
    if starts is None or ends is None or sizes is None:
        raise Refused("the slice is only known at run time")
    given = [*node.inputs[3:], None, None]
    axes = np.arange(starts.size) if given[0] is None else constant(given[0])
    steps = np.ones(starts.size) if given[1] is None else constant(given[1])
    if axes is None or steps is None:
        raise Refused("the slice is only known at run time")
    if starts.any() or (steps != 1).any():
        raise Refused("the slice does not start at the first element, or has steps")
    for axis, end in zip(axes, ends, strict=True):
        size = sizes[int(axis)]
        if end != size and not (isinstance(end, int) and end >= (size if isinstance(size, int) else 2**31 - 1)):
            raise Refused("the slice may leave out the last elements")
    assert node.inputs[0] is not None
    return node.inputs[0]


REMOVE_SLICE = Rule("remove slices", ("Slice",), rewrite)
