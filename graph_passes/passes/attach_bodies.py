"""handheld.Op(...) -> the same node, with the body of Op as a function of the model: it runs with the kernel library and without it."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.errors import GraphError
from graph_passes.ops import BODIES
from graph_passes.step import Pass

DOMAIN = "handheld"
VERSION = 1
OLDEST_OPSET, NEWEST_OPSET = 14, 23  # where the bodies are valid and shapes are inferred through them


def attach_bodies(model: ir.Model) -> int:
    """Attaches the bodies of the custom ops that the model uses and imports their domain. Returns how many.

    It must be the last pass of a pipeline: optimizers inline functions, and that undoes the fusion.
    Errors: GraphError where the model's opset is none that the bodies are written for.
    """
    attached = len(model.functions)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == DOMAIN:
            _attach(node.op_type, model)
    return len(model.functions) - attached


ATTACH_BODIES = Pass("attach bodies", attach_bodies)


def _attach(name: str, model: ir.Model) -> None:
    """Attaches one body, behind those of the ops that it uses itself: readers may expect a function before its first use."""
    if (DOMAIN, name, "") in model.functions:
        return
    opset = model.opset_imports.get("", 0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise GraphError(
            f"the model has opset {opset}, and the bodies of the custom ops are written for {OLDEST_OPSET} to {NEWEST_OPSET}: "
            "export it at one of those"
        )
    function = ir.serde.deserialize_function(BODIES[name].to_function_proto())
    for node in function:
        if node.domain == DOMAIN:
            _attach(node.op_type, model)
    function.opset_imports.update({"": opset, DOMAIN: VERSION})
    model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = VERSION
