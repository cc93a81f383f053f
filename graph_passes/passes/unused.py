"""What nothing uses -> nothing: nodes, initializers, functions, imports of operator sets"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from graph_passes.step import Pass
from graph_passes.values import nodes


def remove_unused(model: ir.Model) -> int:
    """Returns how many nodes, initializers, functions and imports went."""
    before = _parts(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return before - _parts(model)


def _parts(model: ir.Model) -> int:
    return nodes(model) + sum(len(graph.initializers) for graph in model.graphs()) + len(model.functions) + len(model.opset_imports)


REMOVE_UNUSED = Pass("remove what is unused", remove_unused)
