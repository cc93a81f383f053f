"""Where(IsNaN(Softmax(s)), 0, Softmax(s)) -> Softmax(s) where no row of s can be -inf throughout

torch's exporter guards every masked attention so, for masks that hide a whole row. Where the mask is finite, or hides with a large finite
number as transformers does, a NaN can only come from scores that overflowed: the guard would turn a broken picture into a grey one, and
costs two passes over the largest tensor of the layer.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule
from graph_passes.values import constant, producer


def rewrite(node: ir.Node) -> ir.Value:
    condition, zero, softmax = node.inputs
    guard, source = producer(condition, "IsNaN"), producer(softmax, "Softmax")
    if guard is None or source is None or guard.inputs[0] is not softmax:
        raise Refused("this is no guard of a Softmax")
    number = constant(zero)
    if number is None or number.size != 1 or number.flat[0] != 0:
        raise Refused("NaN becomes another number than zero")
    scores = source.inputs[0]
    add = producer(scores, "Add")
    if not (producer(scores, "MatMul", "Mul", "Div") or (add is not None and _masked(add))):
        raise Refused("the mask may hide a whole row")
    assert softmax is not None
    return softmax


def _masked(add: ir.Node) -> bool:
    """Whether one input of the Add is a product and the other a finite mask."""
    return any(producer(scores, "MatMul", "Mul", "Div") is not None and _finite(mask) for scores, mask in (add.inputs, add.inputs[::-1]))


def _finite(value: ir.Value | None) -> bool:
    """Whether a tensor is made of finite constants alone."""
    array = constant(value)
    if array is not None:
        return bool(np.isfinite(array).all())
    node = producer(value, "Where", "Expand", "Reshape", "Unsqueeze", "Transpose", "Slice")
    if node is None:
        return False
    return all(_finite(each) for each in (node.inputs[1:3] if node.op_type == "Where" else node.inputs[:1]))


REMOVE_NAN_GUARD = Rule("remove NaN guards", ("Where",), rewrite)
