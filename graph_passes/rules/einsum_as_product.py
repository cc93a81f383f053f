"""Einsum("b i d, b j d -> b i j", x, y) -> MatMul(x, Transpose(y)), and every other Einsum that is one product of matrices"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit
from graph_passes.values import operands


def rewrite(node: ir.Node) -> ir.Value:
    equation = node.attributes["equation"].as_string().replace(" ", "")
    terms = equation.replace("->", ",").split(",")
    if len(terms) != 3 or "->" not in equation or not "".join(terms).isalpha() or any(len(set(term)) != len(term) for term in terms):
        raise Refused("it is not of two tensors, each axis named once")
    left, right, made = terms
    batch, row, column = made[:-2], made[-2:-1], made[-1:]
    summed = left[-1:]
    if not row or summed in made or left != batch + row + summed or right not in (batch + summed + column, batch + column + summed):
        raise Refused("it is not a product of matrices that are the last two axes")
    x, y = operands(node)
    if right.endswith(summed):
        leading = len(batch)
        y = emit(node, "Transpose", [y], {"perm": [*range(leading), leading + 1, leading]}, suffix="_transposed")
    return emit(node, "MatMul", [x, y])


EINSUM_AS_PRODUCT = Rule("einsum as product", ("Einsum",), rewrite)
