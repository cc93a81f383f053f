"""Lookups by token ids and sines of the timestep -> a graph of their own, which the CPU runs first; the rest takes what it makes as inputs

Phones' accelerators have no integers and no Gather, and compute in half precision, in which sin(981.0 x) is noise. What depends on ids
and on the scalar timestep alone is little work and stays on the CPU: the token embedding with its table, the place of a prompt's end,
and the sinusoids of the time embedding.
"""

from __future__ import annotations

import re
from collections import Counter

import onnx_ir as ir

from graph_passes.extract import extracted
from graph_passes.passes.constants import QUANTIZATION
from graph_passes.passes.unused import remove_unused
from graph_passes.values import is_constant, is_standard, static_shape

HOSTED = ("nnapi", "coreml", "qnn")  # the targets whose graphs are split
HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")
# What only moves numbers about goes with what it moves
VIEWS = ("Cast", "Concat", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def split_host(model: ir.Model) -> ir.Model | None:
    """Takes the host's part out of `model`, in place, and returns it as a model; None where there is none.

    The outputs of the one are inputs of the other, by name: that of the module that makes them. Inputs that only the host reads are no
    longer inputs of `model`.
    """
    graph = model.graph
    moved = _host_nodes(graph)
    cuts = [value for node in moved for value in node.outputs if any(use.node not in moved for use in value.uses())]
    if not cuts or any(value.is_graph_output() for node in moved for value in node.outputs):
        return None
    host = extracted(model, moved, cuts, f"{graph.name}_host")
    taken = Counter(str(value.name) for value in graph.inputs)
    for value, output in zip(cuts, host.graph.outputs, strict=True):
        name = _name(value, taken)
        entry = ir.Value(name=name, type=value.type, shape=value.shape)
        value.replace_all_uses_with(entry)
        graph.inputs.append(entry)
        output.name = name
    graph.remove(moved, safe=True)
    for value in [each for each in graph.inputs if not each.uses()]:
        graph.inputs.remove(value)
    remove_unused(model)
    return host


def _host_nodes(graph: ir.Graph) -> list[ir.Node]:
    """What needs the CPU, what that is computed from, and what only moves the result about; in the graph's order."""
    chosen: set[ir.Node] = set()
    for node in graph:
        if _needs_host(node):
            above = _above(node)
            if not any(is_standard(each, *HEAVY) for each in above):
                chosen |= above
        elif is_standard(node, *VIEWS):
            sources = [value.producer() for value in node.inputs if value is not None and not is_constant(value)]
            if sources and all(source in chosen for source in sources):
                chosen.add(node)
    return [node for node in graph if node in chosen]


def _needs_host(node: ir.Node) -> bool:
    if is_standard(node, "Sin", "Cos", "OneHot"):
        return True
    if node.op_type in QUANTIZATION:  # the integers of an accelerator
        return False
    if is_standard(node, "Gather", "GatherND") and not is_constant(node.inputs[1]):
        return True
    values = [value for value in node.inputs if value is not None and not is_constant(value)]
    return any(value.dtype is not None and not value.dtype.is_floating_point() for value in values) or any(
        value.is_graph_input() and static_shape(value) == () for value in values
    )


def _above(node: ir.Node) -> set[ir.Node]:
    """The node and all that it is computed from."""
    found, open_ = {node}, [node]
    while open_:
        for value in open_.pop().inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in found:
                found.add(producer)
                open_.append(producer)
    return found


def _name(value: ir.Value, taken: Counter[str]) -> str:
    """The last part of the path of the module that computes `value`, such as `token_embedding`; what it is, where that is no part."""
    node = value.producer()
    assert node is not None
    while "." not in _module(node) and is_standard(node, *VIEWS):
        above = node.inputs[0].producer() if node.inputs[0] is not None else None
        if above is None:
            break
        node = above
    path = _module(node)
    name = re.sub(r"\W", "_", path.rpartition(".")[2] if "." in path else node.op_type.lower())
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}_{taken[name] - 1}"


def _module(node: ir.Node) -> str:
    return (node.name or "").rpartition("/")[0]
