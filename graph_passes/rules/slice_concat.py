"""Slice(Concat(x1, ..., xn), exactly the part that is xk) -> xk"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule
from graph_passes.values import constant, dimensions, integer, producer


def rewrite(node: ir.Node) -> ir.Value:
    concat = producer(node.inputs[0], "Concat")
    if concat is None:
        raise Refused("the input is no Concat")
    numbers = [constant(each) for each in node.inputs[1:]]
    if len(numbers) < 3 or any(each is None or each.size != 1 for each in numbers):
        raise Refused("the slice is not along one axis, from constants")
    start, end, axis, *step = [int(each.flat[0]) for each in numbers if each is not None]
    shapes = [dimensions(each) for each in concat.inputs]
    if any(shape is None for shape in shapes):
        raise Refused("the rank of a part is not known")
    rank = len(shapes[0] or ())
    if axis % rank != integer(concat, "axis", 0) % rank or step not in ([], [1]):
        raise Refused("the slice is not along the axis that was joined, or has steps")
    lengths = [(shape or ())[axis % rank] for shape in shapes]
    total, last = 0, 0
    if any(not isinstance(length, int) for length in lengths):
        raise Refused("the length of a part is only known at run time")
    total = sum(length for length in lengths if isinstance(length, int))
    first, stop, _ = slice(start, end).indices(total)
    for part, length in zip(concat.inputs, lengths, strict=True):
        assert isinstance(length, int)
        if (first, stop) == (last, last + length):
            assert part is not None
            return part
        last += length
    raise Refused("the slice cuts through a part, or holds several")


SLICE_CONCAT = Rule("slice concats", ("Slice",), rewrite)
