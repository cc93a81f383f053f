"""GatherND(x, [[0, i0], [1, i1], ...]) -> Reshape(MatMul(OneHot(i), x), [N, D]) for x: [N, T, D]

CLIP's pooled output is the hidden state at the end of the prompt, one row of each sequence. As a product with rows that hold a single 1 it
is exact, and the place i alone is computed from the token ids.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit, emit_constant
from graph_passes.values import constant, integer, producer, static_shape


def rewrite(node: ir.Node) -> ir.Value:
    x, shape = node.inputs[0], static_shape(node.inputs[0])
    pairs = producer(node.inputs[1], "Concat")
    if shape is None or len(shape) != 3 or pairs is None or len(pairs.inputs) != 2 or integer(node, "batch_dims", 0):
        raise Refused("it does not pick one row of each of a batch of matrices")
    rows, places = constant(pairs.inputs[0]), pairs.inputs[1]
    if rows is None or rows.tolist() != [[row] for row in range(shape[0])] or static_shape(places) != (shape[0], 1):
        raise Refused("the rows do not come from one matrix after the other")
    flat = emit(node, "Reshape", [places, emit_constant(node, np.array([shape[0]], np.int64))], suffix="_places")
    choices = [emit_constant(node, np.array(shape[1], np.int64)), emit_constant(node, np.array([0, 1], np.float32))]
    chosen = emit(node, "OneHot", [flat, *choices], {"axis": -1}, suffix="_chosen")
    selector = emit(node, "Reshape", [chosen, emit_constant(node, np.array([shape[0], 1, shape[1]], np.int64))], suffix="_selector")
    picked = emit(node, "MatMul", [selector, x], suffix="_picked")
    return emit(node, "Reshape", [picked, emit_constant(node, np.array([shape[0], shape[2]], np.int64))])


POOL_BY_PRODUCT = Rule("pool by products", ("GatherND",), rewrite)
