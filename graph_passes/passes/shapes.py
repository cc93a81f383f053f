"""What is known of shapes: inferred, and then computed once instead of everywhere."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from graph_passes.sizes import Element, elements
from graph_passes.step import Pass
from graph_passes.values import add_initializer, dimensions


def infer_shapes(model: ir.Model) -> int:
    """Fills in types and shapes by ONNX's own inference, without the large weights. Returns how many values it says something new of.

    What the exporter wrote stays, so a name that it gave to a dimension goes on to the values that have none.
    """
    common.NameFixPass()(model)  # what is inferred comes back by name
    inferred = onnx.shape_inference.infer_shapes(without_weights(model), check_type=False, strict_mode=False, data_prop=True)
    known = {value.name: value for graph in ir.from_proto(inferred).graphs() for value in _outputs(graph)}
    changed = 0
    for graph in model.graphs():
        for value in _outputs(graph):
            found = known.get(value.name)
            if found is None:
                continue
            before = (value.type, dimensions(value))
            value.type = value.type or found.type
            value.shape = found.shape if found.shape is not None else value.shape
            changed += (value.type, dimensions(value)) != before
    return changed


def without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model with a reference to no file in the place of every large initializer: inference needs its shape alone."""
    weights = {value: value.const_value for graph in model.graphs() for value in graph.initializers.values() if not _is_small(value)}
    for value, tensor in weights.items():
        assert tensor is not None
        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor("weights", 0, tensor.nbytes, tensor.dtype, shape=shape, name=value.name or "")
    try:
        return ir.to_proto(model)
    finally:
        for value, tensor in weights.items():
            value.const_value = tensor


def _is_small(value: ir.Value) -> bool:
    return value.const_value is None or value.const_value.nbytes <= 1 << 10


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


def _outputs(graph: ir.Graph) -> list[ir.Value]:
    return [output for node in graph for output in node.outputs if output.name]


INFER_SHAPES = Pass("infer shapes", infer_shapes)
SHARE_SIZES = Pass("share sizes", share_sizes)
