"""Reshape(Transpose(Reshape(x, [-1, n, d]), perm=[0, 2, 1]), [..., d, n]) -> Transpose(x, perm=[..., -1, -2]) for x: [..., n, d]

This is how torch's exporter writes the transposed keys of scaled_dot_product_attention, because it does not use the rank that it knows.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit
from graph_passes.sizes import reshape_target, size_elements
from graph_passes.values import integers, producer


def rewrite(node: ir.Node) -> ir.Value:
    transpose = producer(node.inputs[0], "Transpose")
    if transpose is None or integers(transpose, "perm") != [0, 2, 1]:
        raise Refused("the input is no Transpose of the last two of three axes")
    fold = producer(transpose.inputs[0], "Reshape")
    if fold is None:
        raise Refused("what is transposed is no Reshape")
    sizes, folded, target = size_elements(fold.inputs[0]), reshape_target(fold), reshape_target(node)
    if sizes is None or folded is None or target is None:
        raise Refused("a shape is not known")
    if len(sizes) < 2 or len(folded) != 3 or folded[1:] != sizes[-2:]:
        raise Refused("the first Reshape does more than to fold the leading axes")
    unfolded = (*sizes[:-2], sizes[-1], sizes[-2])
    if len(target) != len(unfolded) or any(asked not in (-1, size) for asked, size in zip(target, unfolded, strict=True)):
        raise Refused("the second Reshape does more than to unfold the leading axes")
    rank = len(sizes)
    return emit(node, "Transpose", [fold.inputs[0]], {"perm": [*range(rank - 2), rank - 1, rank - 2]})


UNFOLD_TRANSPOSE = Rule("unfold transposes", ("Reshape",), rewrite)
