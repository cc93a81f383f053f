"""The exporter's counters -> names that say where a node belongs: `encoder.layers.0.mlp.fc1/MatMul`

The same module always gives the same names. Inputs, outputs and parameters keep theirs.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

from graph_passes.step import Pass
from graph_passes.values import is_constant, is_parameter_name

SCOPES = "pkg.torch.onnx.name_scopes"  # torch's exporter: the modules around a node, outermost first, and last the node's own name


def name_nodes(model: ir.Model) -> int:
    """Renames nodes, the values they compute and the constants they read. Returns how many names changed."""
    graph = model.graph
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    taken |= {name for each in model.graphs() for name in each.initializers if is_parameter_name(name)}
    counts: Counter[str] = Counter()
    planned: dict[ir.Value, str] = {}
    changed = 0
    for node in ir.traversal.RecursiveGraphIterator(graph):
        name = _unique(f"{module}/{node.op_type}" if (module := _module(node)) else node.op_type, counts)
        changed += node.name != name
        node.name = name
        for index, value in enumerate(node.inputs):
            if is_constant(value) and not value.is_graph_output() and not is_parameter_name(value.name):
                planned.setdefault(value, f"{name}_input_{index}")
        for index, value in enumerate(node.outputs):
            if value.name and not value.is_graph_output():
                planned[value] = f"{name}_output_{index}"
    # names pass through ones that nobody has, because a new name may still be another value's old one
    changes = {value: name if name not in taken else f"{name}_" for value, name in planned.items()}
    changes = {value: name for value, name in changes.items() if value.name != name}
    for index, value in enumerate(changes):
        value.name = f"\0{index}"
    for value, name in changes.items():
        value.name = name
    return changed + len(changes)


def _module(node: ir.Node) -> str:
    """The path of the module that a node was traced in: by torch's new exporter in its metadata, by its old one in the node's name."""
    scopes = node.metadata_props.get(SCOPES)
    if scopes is not None:
        modules = [scope for scope in ast.literal_eval(scopes)[:-1] if not scope.startswith("_empty_nn_module")]
        return str(modules[-1]) if modules else ""
    return (node.name or "").rpartition("/")[0].lstrip("/")


def _unique(name: str, counts: Counter[str]) -> str:
    counts[name] += 1
    return name if counts[name] == 1 else f"{name}_{counts[name] - 1}"


NAME_NODES = Pass("name nodes", name_nodes)
