"""reshape(...(reshape(x))) -> x where the shapes agree; reshape is any of Reshape, Squeeze, Unsqueeze, Flatten"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule
from graph_passes.sizes import reshape_target, size_elements
from graph_passes.values import producer, same_shape

RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def rewrite(node: ir.Node) -> ir.Value:
    output = node.outputs[0]
    step: ir.Node | None = node
    target = reshape_target(node) if node.op_type == "Reshape" else None
    while step is not None:
        value = step.inputs[0]
        assert value is not None
        if same_shape(value, output) or (target is not None and target == size_elements(value)):
            return value
        step = producer(value, *RESHAPES)
    raise Refused("nothing before it is known to have the shape that it makes")


REMOVE_RESHAPE = Rule("remove reshapes", RESHAPES, rewrite)
