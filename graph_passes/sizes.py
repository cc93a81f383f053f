"""Symbolic arithmetic on shapes: what the elements of a small integer tensor are, in terms of the sizes of the graph's tensors."""

from __future__ import annotations

import math

import onnx_ir as ir

from graph_passes.values import constant, dimensions, integer, producer, static_shape

# An element is a number, the name of a dimension, or, where neither is known, where to find it: ("size" or "element", of a value, at)
Element = int | str | tuple[str, ir.Value, int]

MOST_ELEMENTS = 16  # no shape is longer; keeps tensors of indices out


def elements(value: ir.Value | None) -> tuple[Element, ...] | None:
    """The elements of an int64 scalar or vector of known length, flattened; None for any other value.

    Two elements that are equal here are equal whenever the graph runs.
    """
    if value is None or value.dtype != ir.DataType.INT64:
        return None
    array = constant(value)
    if array is not None:
        return tuple(int(each) for each in array.flat) if array.ndim <= 1 and array.size <= MOST_ELEMENTS else None
    shape = static_shape(value)
    known = _computed(value)
    if known is not None:
        return known
    if shape is None or len(shape) > 1 or (shape and shape[0] > MOST_ELEMENTS):
        return None
    return tuple(("element", value, index) for index in range(shape[0] if shape else 1))


def _computed(value: ir.Value) -> tuple[Element, ...] | None:
    """The elements where the value is read from a shape, or put together from such values."""
    node = producer(value, "Shape", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity")
    if node is None:
        return None
    if node.op_type == "Shape":
        sizes = size_elements(node.inputs[0])
        if sizes is None:
            return None
        return sizes[integer(node, "start", 0) : integer(node, "end", len(sizes))]
    if node.op_type == "Concat":
        parts = [elements(each) for each in node.inputs]
        return None if any(part is None for part in parts) else tuple(each for part in parts if part is not None for each in part)
    source = elements(node.inputs[0])
    if source is None or node.op_type in ("Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity"):
        shape = dimensions(value)
        # a matrix of sizes is nothing that these passes read
        return source if shape is None or len(shape) <= 1 else None
    if node.op_type == "Gather":
        indices = constant(node.inputs[1])
        if indices is None or indices.ndim > 1 or any(not -len(source) <= int(index) < len(source) for index in indices.flat):
            return None
        return tuple(source[int(index)] for index in indices.flat)
    starts, ends = constant(node.inputs[1]), constant(node.inputs[2])
    steps = constant(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else [1]
    if starts is None or ends is None or steps is None:
        return None
    return source[int(starts[0]) : int(ends[0]) : int(steps[0])]


def reshape_target(node: ir.Node) -> tuple[Element, ...] | None:
    """The sizes that a Reshape node makes: a 0 is read as the size of the input in its place, a -1 as the size that is left."""
    target, sizes = elements(node.inputs[1]), size_elements(node.inputs[0])
    if target is None or sizes is None:
        return target if target is not None and (0 not in target or integer(node, "allowzero", 0)) else None
    if not integer(node, "allowzero", 0):
        if any(each == 0 and axis >= len(sizes) for axis, each in enumerate(target)):
            return None
        target = tuple(each if each != 0 else sizes[axis] for axis, each in enumerate(target))
    left = _left_over(sizes, target) if target.count(-1) == 1 else None
    return target if left is None else tuple(left if each == -1 else each for each in target)


def _left_over(sizes: tuple[Element, ...], target: tuple[Element, ...]) -> Element | None:
    """The size that -1 stands for, None where that is no number and no single dimension of the input."""
    unknown = [size for size in sizes if not isinstance(size, int)]
    for each in target:
        if not isinstance(each, int):
            if each not in unknown:
                return None
            unknown.remove(each)
    have = math.prod(size for size in sizes if isinstance(size, int))
    used = math.prod(each for each in target if isinstance(each, int) and each != -1)
    if not used or have % used or (unknown and (len(unknown) > 1 or have != used)):
        return None
    return unknown[0] if unknown else have // used


def size_elements(value: ir.Value | None) -> tuple[Element, ...] | None:
    """The sizes of a tensor as elements; one that is not known is told apart by where it is: the same tensor, the same axis."""
    sizes = dimensions(value)
    if value is None or sizes is None:
        return None
    return tuple(("size", value, axis) if size is None else size for axis, size in enumerate(sizes))
