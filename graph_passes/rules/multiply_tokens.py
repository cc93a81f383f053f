"""NHWC(Conv1x1(x, w) + b) -> NHWC(x) W + b;  Conv1x1(NCHW(t), w) + b -> NCHW(t W + b)

The projections into and out of the transformer blocks of SD 1.x are convolutions of one pixel, and stand beside the Transpose between
pictures and tokens. On the tokens' side of it they are linear layers, and cost what those do.
"""

from __future__ import annotations

import functools

import onnx_ir as ir

from graph_passes.passes.weights import moved
from graph_passes.rule import Refused, Rule, emit
from graph_passes.values import (
    add_made,
    dimensions,
    graph_of,
    integer,
    integers,
    is_constant,
    lengths,
    only_user,
    producer,
    stored,
)

TO_TOKENS, TO_PICTURE = [0, 2, 3, 1], [0, 3, 1, 2]


def rewrite(node: ir.Node) -> ir.Value:
    if node.op_type == "Transpose":
        conv = producer(node.inputs[0], "Conv")
        if conv is None or integers(node, "perm") != TO_TOKENS or only_user(conv.outputs[0], "Transpose") is not node:
            raise Refused("it does not alone turn what a convolution makes into tokens")
        weight = _weight(conv)
        picture = conv.inputs[0]
        assert picture is not None
        tokens = emit(node, "Transpose", [picture], {"perm": TO_TOKENS}, "_tokens")
        sizes = dimensions(picture)
        tokens.type, tokens.shape = picture.type, ir.Shape([sizes[axis] for axis in TO_TOKENS]) if sizes else None
        return _multiply(node, tokens, weight, conv)
    transpose = producer(node.inputs[0], "Transpose")
    if transpose is None or integers(transpose, "perm") != TO_PICTURE:
        raise Refused("its input is not made of tokens")
    weight, tokens_in = _weight(node), transpose.inputs[0]
    assert tokens_in is not None
    return emit(node, "Transpose", [_multiply(node, tokens_in, weight, node)], {"perm": TO_PICTURE}, "_picture")


def _weight(conv: ir.Node) -> ir.Value:
    """The weight of a convolution that sees one pixel at a time. Raises Refused where it sees more."""
    weight = conv.inputs[1]
    shape = dimensions(weight)
    if weight is None or not is_constant(weight) or shape is None or len(shape) != 4 or shape[2:] != (1, 1) or len(weight.uses()) != 1:
        raise Refused("its weight is no constant of its own, of one pixel")
    if integer(conv, "group", 1) != 1 or any(integers(conv, "pads") or []) or set(integers(conv, "strides") or [1]) != {1}:
        raise Refused("it has groups, a border or a stride")
    return weight


def _multiply(before: ir.Node, tokens: ir.Value, weight: ir.Value, conv: ir.Node) -> ir.Value:
    """tokens W + b, in front of `before`."""
    source = stored(weight)
    columns, rows = lengths(source)[:2]
    make = functools.partial(moved, source, (1, 0, 2, 3), (rows, columns), source.dtype)
    matrix = add_made(graph_of(before), f"{weight.name}_matrix", make, source.dtype, [rows, columns])
    product = emit(before, "MatMul", [tokens, matrix])
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    shape = dimensions(tokens)
    product.type = tokens.type
    if shape is not None:
        product.shape = ir.Shape([*shape[:-1], columns])
    if bias is None:
        return product
    total = emit(before, "Add", [product, bias], suffix="_bias")
    total.type, total.shape = product.type, product.shape
    return total


MULTIPLY_TOKENS = Rule("multiply tokens", ("Transpose", "Conv"), rewrite)
