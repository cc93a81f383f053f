"""The same computation twice -> once; the same initializer twice -> once"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from graph_passes.step import Pass
from graph_passes.values import constant, is_constant, is_parameter_name, nodes, stored


def merge_nodes(model: ir.Model) -> int:
    """Nodes with the same operator, attributes and inputs become one. Returns how many went."""
    before = nodes(model)
    common.CommonSubexpressionEliminationPass()(model)
    return before - nodes(model)


def merge_initializers(model: ir.Model) -> int:
    """Initializers that share their storage become one, and so do small constants of one value. Returns how many went.

    Parameters that only happen to be equal stay apart (see `is_parameter_name`).
    """
    merged = 0
    for graph in model.graphs():
        first: dict[object, ir.Value] = {}
        for value in list(graph.initializers.values()):
            if not is_constant(value) or value.is_graph_output():
                continue
            kept = first.setdefault(_identity(value), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del graph.initializers[value.name or ""]
                merged += 1
    return merged


def _identity(value: ir.Value) -> object:
    """What two initializers have in common if they are the same."""
    tensor = stored(value)
    form = (tensor.dtype, tuple(tensor.shape))
    if not is_parameter_name(value.name):
        array = constant(value)
        if array is not None:
            return (*form, array.tobytes())
    if isinstance(tensor, ir.ExternalTensor):
        return (*form, str(tensor.path), tensor.offset)
    storage = tensor.raw if isinstance(tensor, ir.Tensor) else tensor
    return (*form, id(storage))


MERGE_NODES = Pass("merge equal nodes", merge_nodes)
MERGE_INITIALIZERS = Pass("merge equal initializers", merge_initializers)
