"""What is known of shapes: inferred, and then computed once instead of everywhere."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graph_passes.sizes import Element, elements
from graph_passes.step import Pass
from graph_passes.values import add_initializer, dimensions


def infer_shapes(model: ir.Model) -> int:
    """Fills in types and shapes by ONNX's own inference, with the values of large initializers left out. Returns how many changed.

    What the exporter wrote stays, so a name that it gave to a dimension goes on to the values that have none.
    """
    before = {value: (value.dtype, dimensions(value)) for value in _values(model)}
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return sum((value.dtype, dimensions(value)) != known for value, known in before.items())


def share_sizes(model: ir.Model) -> int:
    """Values that hold the same sizes become one value, or a constant where all sizes are numbers. Returns how many were replaced.

    Exporters read the batch size from every activation that needs it; read once, from the input, nothing else keeps the reads alive.
    """
    graph, replaced = model.graph, 0
    known: dict[tuple[int, tuple[Element, ...]], ir.Value] = {}
    for node in graph:
        if len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            continue
        output = node.outputs[0]
        sizes, rank = elements(output), len(output.shape) if output.shape is not None else None
        if sizes is None or rank is None:
            continue
        if all(isinstance(each, int) for each in sizes):
            array = np.array(sizes if rank else sizes[0], np.int64)
            value = add_initializer(graph, ir.tensor(array), f"{node.name or node.op_type}_sizes")
        else:
            value = known.setdefault((rank, sizes), output)
        if value is not output:
            output.replace_all_uses_with(value)
            graph.remove(node, safe=True)
            replaced += 1
    return replaced


def _values(model: ir.Model) -> list[ir.Value]:
    return [output for node in ir.traversal.RecursiveGraphIterator(model.graph) for output in node.outputs]


INFER_SHAPES = Pass("infer shapes", infer_shapes)
SHARE_SIZES = Pass("share sizes", share_sizes)
