"""Nodes of ONNX Runtime's own operators, those of the domain com.microsoft (its docs/ContribOperators.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graph_passes.values import is_constant, is_standard

DOMAIN, VERSION = "com.microsoft", 1
TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)  # the kernels of both providers that have these operators, CUDA and WebGPU, take both

ALWAYS_FLOAT32 = {"GroupNorm": (1, 2), "SkipGroupNorm": (1, 2)}  # inputs that the CUDA kernels take in no other type: gamma and beta


def insert(
    before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any], name: str | None, outputs: int = 1
) -> ir.Node:
    """Adds a node of the domain in front of `before`, with the import that it needs."""
    node = ir.node(op_type, inputs, attributes, domain=DOMAIN, num_outputs=outputs, name=name, metadata_props=dict(before.metadata_props))
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(before, node)
    graph.opset_imports[DOMAIN] = VERSION
    return node


def is_contrib(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of these operators of the domain."""
    return node is not None and node.domain == DOMAIN and node.op_type in op_types


def bias_of(add: ir.Node | None, channels: int) -> tuple[ir.Value, ir.Value] | None:
    """(value, bias) of an Add of a constant [channels] to what is not constant; None where it is none."""
    if add is None or not is_standard(add, "Add"):
        return None
    for value, bias in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        if value is not None and is_constant(bias) and not is_constant(value) and tuple(bias.shape or ()) == (channels,):
            return value, bias
    return None
