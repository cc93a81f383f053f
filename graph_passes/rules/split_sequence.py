"""SequenceAt(SplitToSequence(x, split), i) -> output i of Split(x, split)"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit_constant
from graph_passes.values import constant, dimensions, integer, producer


def rewrite(node: ir.Node) -> ir.Value:
    split = producer(node.inputs[0], "SplitToSequence")
    if split is None:
        raise Refused("the sequence is not made by SplitToSequence")
    position, lengths = constant(node.inputs[1]), constant(split.inputs[1]) if len(split.inputs) > 1 else None
    source, axis = split.inputs[0], integer(split, "axis", 0)
    sizes = dimensions(source)
    if position is None or lengths is None or sizes is None:
        raise Refused("the position or the lengths of the parts are only known at run time")
    if lengths.ndim == 0:
        total, length = sizes[axis], int(lengths)
        if not isinstance(total, int):
            raise Refused("the number of parts is only known at run time")
        lengths = np.array([min(length, total - start) for start in range(0, total, length)], np.int64)
    index = int(position) + (lengths.size if position < 0 else 0)
    if not 0 <= index < lengths.size:
        raise Refused("the position lies outside the sequence")
    inputs = [source, emit_constant(node, lengths.astype(np.int64))]
    parts = ir.node("Split", inputs, {"axis": axis}, num_outputs=lengths.size, name=node.name, metadata_props=dict(node.metadata_props))
    assert node.graph is not None
    node.graph.insert_before(node, parts)
    return parts.outputs[index]


SPLIT_SEQUENCE = Rule("split sequences", ("SequenceAt",), rewrite)
