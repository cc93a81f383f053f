"""Counted work: the multiply-accumulates of a graph, by kind, at given input shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass
from onnxscript.optimizer import fold_constants

from graph_passes.contrib.expand import expand
from graph_passes.contrib.nodes import DOMAIN

Shapes = Mapping[str, tuple[int, ...]]


class Uncounted(ValueError):
    """A graph whose work cannot be told from its shapes; the message says which value is at fault."""


def count_macs(model: ir.Model, shapes: Shapes) -> dict[str, int]:
    """Multiply-accumulates of one run, by kind: `{"3x3 conv": .., "1x1 conv": .., "linear": .., "attention": ..}`.

    Convolutions are named by their kernel. A matrix product is `linear` where one side is a weight and `attention` where both are
    activations. Norms, activations, softmax and biases are not counted, as in the literature; a FLOP count is twice the sum.
    Functions of the model are counted through their bodies. `model` is left as it is and no weight is read.
    `shapes` names every input that has a free axis.

    Errors: Uncounted where a shape stays unknown, an input of `shapes` does not exist, or the graph branches or loops.
    """
    static = _with_shapes(model, shapes)
    weights = set(static.graph.initializers.values())
    work: Counter[str] = Counter()
    for node in static.graph:
        if all(value is None or value in weights for value in node.inputs):
            weights.update(node.outputs)  # a weight that is moved, or transformed, is a weight: that is no work of a run
            continue
        if node.domain not in ("", "ai.onnx", "com.microsoft"):
            continue
        if node.op_type in ("If", "Loop", "Scan"):
            raise Uncounted(f"the graph branches or loops at the {node.op_type} '{node.name}': how often its body runs is not known before")
        if (counted := _work_of(node, weights)) is not None:
            work[counted[0]] += counted[1]
    return dict(work)


def macs_of(node: ir.Node) -> int:
    """The multiply-accumulates of one node, attention as a single operator included. Errors: Uncounted where a shape is not known."""
    return (_work_of(node, ()) or ("", 0))[1]


def _work_of(node: ir.Node, weights: Container[ir.Value | None]) -> tuple[str, int] | None:
    """The kind of a node's work and its multiply-accumulates; None where it has none that count. Errors: Uncounted."""
    if node.op_type == "Conv":
        kernel = _shape(node, node.inputs[1])
        return "x".join(map(str, kernel[2:])) + " conv", math.prod(_shape(node, node.outputs[0])) * math.prod(kernel[1:])
    if node.op_type == "NhwcConv":
        kernel = _shape(node, node.inputs[1])
        return "x".join(map(str, kernel[1:3])) + " conv", math.prod(_shape(node, node.outputs[0])) * math.prod(kernel[1:])
    if node.op_type == "ConvTranspose":  # every input element meets every output channel of its group, once per kernel position
        kernel = _shape(node, node.inputs[1])
        return "x".join(map(str, kernel[2:])) + " conv", math.prod(_shape(node, node.inputs[0])) * math.prod(kernel[1:])
    if node.op_type in ("MatMul", "Gemm"):
        left = _shape(node, node.inputs[0])
        transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transA", 0))
        inner = left[0] if transposed else left[-1]
        kind = "linear" if any(value in weights for value in node.inputs[:2]) else "attention"
        return kind, math.prod(_shape(node, node.outputs[0])) * inner
    if node.op_type in ("FlashAttention", "PartialSoftmaxAttention", "MultiHeadAttention"):
        # queries [batch, queries, channels], keys likewise; packed: [batch, tokens, heads, 3, dim], and keys with values [.., 2, dim]
        queries = _shape(node, node.inputs[0])
        keys = _shape(node, next((value for value in node.inputs[1:2] if value is not None), node.inputs[0]))
        channels = queries[2] * (queries[4] if len(queries) == 5 else 1)
        return "attention", 2 * queries[0] * queries[1] * keys[1] * channels
    return None


def output_shapes(model: ir.Model, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shape of every value that a node of the graph computes, by its name, at given input shapes; those that stay free are left out.

    Errors: Uncounted where an input of `shapes` does not exist.
    """
    static = _with_shapes(model, shapes)
    known = ((value.name or "", value.shape) for node in static.graph for value in node.outputs)
    return {name: shape.numpy() for name, shape in known if shape is not None and shape.is_static()}


def _with_shapes(model: ir.Model, shapes: Shapes) -> ir.Model:
    """A copy of the graph (it shares the weights) with its inputs at `shapes` and the shapes of all values inferred from them."""
    known = {value.name for value in model.graph.inputs}
    if unknown := sorted(set(shapes) - known):
        raise Uncounted(f"the graph has no input '{unknown[0]}': it has {', '.join(sorted(map(str, known)))}")
    static = model.clone()
    InlinePass()(static)
    if DOMAIN in static.opset_imports:
        expand(static)  # ONNX infers no shapes through ONNX Runtime's own operators
    for node in static.graph:
        for value in node.outputs:
            if value.shape is not None and not all(isinstance(dimension, int) for dimension in value.shape):
                value.shape = None  # the names of free axes would win over the numbers
    for value in static.graph.inputs:
        if (shape := shapes.get(str(value.name))) is not None:
            value.shape = ir.Shape(shape)
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(static)
    # shapes that are computed from other shapes become constants only where they are evaluated; weights stay above the size limit
    fold_constants(static, onnx_shape_inference=True, input_size_limit=1024, output_size_limit=4096)
    return static


def _shape(node: ir.Node, value: ir.Value | None) -> tuple[int, ...]:
    shape = None if value is None else value.shape
    if shape is None or not all(isinstance(dimension, int) for dimension in shape):
        name = value.name if value else "?"
        raise Uncounted(f"the shape of '{name}' at the {node.op_type} '{node.name}' stays {shape}: give the shape of every free input")
    return tuple(int(dimension) for dimension in shape)  # type: ignore[arg-type]
