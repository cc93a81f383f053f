"""What the passes ask of a value and of its place in the graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

SMALL = 1 << 20  # bytes: no pass makes an array of more than this; larger tensors stay where they are until they are written
DEFAULT_DOMAINS = ("", "ai.onnx")

Dimension = int | str | None  # a size, the name of one, or unknown


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Whether the node is one of these operators of ONNX itself."""
    return node.op_type in op_types and node.domain in DEFAULT_DOMAINS


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes `value`, if it is one of these standard operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and is_standard(node, *op_types) else None


def only_user(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The node that alone reads `value`, if it is one of these standard operators and no caller of the graph sees the value."""
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 and is_standard(readers[0], *op_types) and not value.is_graph_output() else None


def operands(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node, without those that are left out."""
    return [value for value in node.inputs if value is not None]


def other_operand(node: ir.Node, one: ir.Value) -> ir.Value:
    """Of a node with two inputs the one that is not `one`; `one` itself where it is both."""
    first, second = operands(node)
    return second if first is one else first


def is_constant(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether the value is an initializer that no caller can override (an initializer that is also an input is only a default)."""
    return value is not None and value.is_initializer() and value.const_value is not None and not value.is_graph_input()


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant of at most SMALL bytes, else None."""
    if not is_constant(value):
        return None
    tensor = stored(value)
    return tensor.numpy() if tensor.nbytes <= SMALL and not tensor.dtype.is_string() else None


def stored(value: ir.Value | None) -> ir.TensorProtocol:
    """The tensor of what is known to be a constant; it may still lie in its file."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value


def lengths(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a tensor, whose sizes are numbers always."""
    return tuple(tensor.shape.numpy())


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node stands in, where it is known to stand in one, and in no function."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def dimensions(value: ir.Value | None) -> tuple[Dimension, ...] | None:
    """The shape of a value, None where not even its rank is known.

    The names that an output of the graph has for its dimensions are its caller's, who may call 8 x height just height: they are left out.
    """
    if value is None or value.shape is None:
        return None
    names = not value.is_graph_output()
    return tuple((size.value if names else None) if isinstance(size, ir.SymbolicDim) else int(size) for size in value.shape)


def same_shape(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Whether two shapes are known to be equal. Within a graph two dimensions of one name are one number."""
    sizes = dimensions(first)
    return sizes is not None and None not in sizes and sizes == dimensions(second)


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape where every size is a number, else None."""
    numbers = tuple(size for size in dimensions(value) or (None,) if isinstance(size, int))
    return numbers if value is not None and value.shape is not None and len(numbers) == len(value.shape) else None


def integers(node: ir.Node, name: str) -> list[int] | None:
    """An attribute that is a list of integers, None where the node has none of that name."""
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else [int(each) for each in attribute.as_ints()]


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute that is an integer."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def is_parameter_name(name: str | None) -> bool:
    """Whether an initializer's name is a path of modules, such as `down_blocks.0.conv.weight`, rather than an exporter's counter.

    Parameters keep their names and are never merged because their values agree: LoRA and the checks find them by name, and the graph
    must not depend on what the weights happen to be.
    """
    return bool(name and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", name))


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """A new initializer of `graph`, called `name` or, where that is taken, `name_1`, `name_2`, ..."""
    unique, count = name, 0
    while unique in graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    value = ir.Value(name=unique, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def add_made(graph: ir.Graph, name: str, make: Callable[[], ir.TensorProtocol], dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    """A new initializer whose tensor `make` makes while it is written, so that none is held in memory before."""
    return add_initializer(graph, ir.LazyTensor(make, dtype, ir.Shape(shape)), name)


def nodes(model: ir.Model) -> int:
    """Number of nodes, those of subgraphs and of functions included."""
    functions = (node for function in model.functions.values() for node in ir.traversal.RecursiveGraphIterator(function))
    return sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph)) + sum(1 for _ in functions)
