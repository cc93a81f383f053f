"""handheld.Op(...) -> the same node, with the body of Op as a function of the model: it runs with the kernel library and without it."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.errors import GraphError
from graph_passes.ops import BODIES
from graph_passes.step import Pass

DOMAIN = "handheld"
VERSION = 1
OLDEST_OPSET, NEWEST_OPSET = 13, 23  # where the operators of the bodies have the form in which they are written


def attach_bodies(model: ir.Model) -> int:
    """Attaches the bodies of the custom ops that the model uses and imports their domain. Returns how many.

    It must be the last pass of a pipeline: optimizers inline functions, and that undoes the fusion.
    Errors: GraphError where the model's opset is none that the bodies are written for.
    """
    missing = _used(model) - {name for domain, name, _ in model.functions if domain == DOMAIN}
    if not missing:
        return 0
    opset = model.opset_imports.get("", 0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise GraphError(
            f"the model has opset {opset}, and the bodies of the custom ops are written for {OLDEST_OPSET} to {NEWEST_OPSET}: "
            "export it at one of those"
        )
    attached = 0
    while missing:
        for name in sorted(missing):
            function = ir.serde.deserialize_function(BODIES[name].to_function_proto())
            function.opset_imports.update({"": opset, DOMAIN: VERSION})
            model.functions[function.identifier()] = function
            attached += 1
        missing = _used(model) - {name for domain, name, _ in model.functions if domain == DOMAIN}  # a body may use another op
    model.opset_imports[DOMAIN] = VERSION
    return attached


ATTACH_BODIES = Pass("attach bodies", attach_bodies)


def _used(model: ir.Model) -> set[str]:
    """Names of the custom ops in the graph, its subgraphs and the functions."""
    nodes = [*ir.traversal.RecursiveGraphIterator(model.graph)]
    for function in model.functions.values():
        nodes += ir.traversal.RecursiveGraphIterator(function)
    return {node.op_type for node in nodes if node.domain == DOMAIN}
