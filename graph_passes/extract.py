"""A part of a graph as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graph_passes.values import is_constant


def extracted(model: ir.Model, chosen: Sequence[ir.Node], outputs: Sequence[ir.Value], name: str) -> ir.Model:
    """A model of copies of the `chosen` nodes, given in the graph's order, that computes `outputs`.

    What other nodes compute and what the graph takes are its inputs, under their names; constants come along, sharing their tensors.
    """
    copies: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    nodes = []
    for node in chosen:
        for value in node.inputs:
            if value is None or value in copies:
                continue
            copies[value] = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)
            (initializers if is_constant(value) else inputs).append(copies[value])
        copy = ir.node(
            node.op_type,
            [None if value is None else copies[value] for value in node.inputs],
            dict(node.attributes),
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
            copies[old] = new
        nodes.append(copy)
    graph = ir.Graph(
        inputs,
        [copies[value] for value in outputs],
        nodes=nodes,
        initializers=initializers,
        opset_imports=dict(model.opset_imports),
        name=name,
    )
    return ir.Model(graph, ir_version=model.ir_version, producer_name=model.producer_name)
