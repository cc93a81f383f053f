"""NCHW -> NHWC, the layout of tensor cores and of the CUDA provider's own operators: Conv -> com.microsoft.NhwcConv, and what is between.

Every picture [batch, channels, height, width] gets a twin with the channels last, and so does a sequence [batch, channels, positions].
Going through the graph once, what can read twins does so and makes a twin; a Transpose stands only where a twin is first needed, or where
something reads the picture itself. A Transpose that the exporter wrote between the two layouts is then its input's twin, and goes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graph_passes.contrib.nodes import insert, is_contrib
from graph_passes.passes.weights import moved
from graph_passes.rule import emit, emit_constant, replace
from graph_passes.step import Pass
from graph_passes.values import (
    Dimension,
    add_made,
    constant,
    dimensions,
    graph_of,
    integer,
    integers,
    is_constant,
    is_standard,
    lengths,
    operands,
    producer,
    static_shape,
    stored,
)

TO_LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1)}
TO_FIRST = {3: (0, 2, 1), 4: (0, 3, 1, 2)}
ONE_INPUT = ("Cast", "Clip", "Cos", "Erf", "Exp", "Gelu", "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Sin", "Sqrt", "Tanh")
TWO_INPUTS = ("Add", "Div", "Mul", "Pow", "Sub")


class _Twins:
    """The twins of one graph's values, and the nodes that they take the place of."""

    def __init__(self) -> None:
        self.of: dict[ir.Value, ir.Value] = {}
        self.replaced: list[ir.Node] = []

    def visit(self, node: ir.Node) -> None:
        """Gives the node's output a twin where it can have one; nodes come in the graph's order."""
        if is_standard(node, "Conv"):
            twin = self._conv(node)
        elif is_contrib(node, "GroupNorm"):
            twin = self._group_norm(node)
        elif is_standard(node, "Transpose"):
            twin = self._transpose(node)
        elif not any(value in self.of for value in node.inputs):
            return
        elif is_standard(node, *ONE_INPUT):
            twin = self._made(node, [self._twin(operands(node)[0], node), *node.inputs[1:]])
        elif is_standard(node, *TWO_INPUTS):
            twin = self._elementwise(node)
        elif is_standard(node, "Concat") and integer(node, "axis", 0) in (1, 1 - len(dimensions(node.outputs[0]) or ())):
            inputs = [self._twin(value, node) for value in operands(node)]
            twin = self._made(node, inputs, {"axis": len(dimensions(node.outputs[0]) or ()) - 1})
        elif is_standard(node, "Resize"):
            twin = self._resize(node)
        elif is_standard(node, "Reshape"):
            twin = self._reshape(node)
        elif is_standard(node, "Shape"):
            self._shape(node)
            return
        else:
            return
        if twin is not None:
            self.of[node.outputs[0]] = twin
            self.replaced.append(node)

    def finish(self) -> int:
        """Removes what twins took the place of; a picture that is still read becomes a Transpose of its twin. Returns how many went."""
        for node in reversed(self.replaced):  # readers before what they read
            output, graph = node.outputs[0], node.graph
            assert graph is not None
            if not output.uses() and not output.is_graph_output():
                graph.remove(node, safe=True)
            elif not is_standard(node, "Transpose"):  # which is what would be made of its twin
                twin = self.of[output]
                order = TO_FIRST[len(dimensions(twin) or ())]
                replace(node, emit(node, "Transpose", [twin], {"perm": list(order)}, "_channels_first"))
        return len(self.replaced)

    def _twin(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """The twin of a value, made where it has none yet."""
        if value in self.of:
            return self.of[value]
        shape = dimensions(value)
        assert shape is not None
        unsqueeze = producer(value, "Unsqueeze")
        if shape[2:] == (1, 1) and unsqueeze is not None and len(dimensions(unsqueeze.inputs[0]) or ()) == 2:
            twin = emit(before, "Unsqueeze", [unsqueeze.inputs[0], emit_constant(before, np.array([1, 2], np.int64))], suffix="_last")
        elif shape[2:] == (1, 1) and isinstance(shape[1], int):
            twin = emit(before, "Reshape", [value, emit_constant(before, np.array([0, 1, 1, shape[1]], np.int64))], suffix="_last")
        else:
            twin = emit(before, "Transpose", [value], {"perm": list(TO_LAST[len(shape)])}, "_channels_last")
        self.of[value] = _known(twin, value)
        return twin

    def _made(self, node: ir.Node, inputs: Sequence[ir.Value | None], attributes: dict[str, object] | None = None) -> ir.Value:
        """The output of the same operator on other inputs."""
        return _known(emit(node, node.op_type, inputs, {**node.attributes, **(attributes or {})}), node.outputs[0])

    def _conv(self, node: ir.Node) -> ir.Value | None:
        x, weight = operands(node)[:2]
        shape = static_shape(weight)
        if not is_constant(weight) or shape is None or len(shape) != 4 or integer(node, "group", 1) != 1 or len(dimensions(x) or ()) != 4:
            return None
        inputs = [self._twin(x, node), _turned(weight, node), *node.inputs[2:]]
        return _known(insert(node, "NhwcConv", inputs, dict(node.attributes), node.name).outputs[0], node.outputs[0])

    def _group_norm(self, node: ir.Node) -> ir.Value:
        x, *affine = operands(node)
        attributes = {**node.attributes, "channels_last": 1}
        return _known(insert(node, "GroupNorm", [self._twin(x, node), *affine], attributes, node.name).outputs[0], node.outputs[0])

    def _transpose(self, node: ir.Node) -> ir.Value | None:
        """A Transpose to the channels at the end is the twin of its input; one from there has its input for a twin."""
        x, output = operands(node)[0], node.outputs[0]
        order = tuple(integers(node, "perm") or ())
        if x in self.of and order == TO_LAST.get(len(order)) and not output.is_graph_output():
            output.replace_all_uses_with(self.of[x])
        elif order == TO_FIRST.get(len(order)):
            return x
        return None

    def _elementwise(self, node: ir.Node) -> ir.Value | None:
        shape = dimensions(node.outputs[0]) or ()
        inputs = []
        for value in operands(node):
            rank = len(dimensions(value) or ())
            if rank == len(shape) and not is_constant(value):
                inputs.append(self._twin(value, node))
            elif (turned := _turned_constant(value, len(shape), node)) is not None:
                inputs.append(turned)
            else:
                return None
        return self._made(node, inputs) if len(shape) in TO_LAST else None

    def _resize(self, node: ir.Node) -> ir.Value | None:
        """A Resize to the nearest neighbours, by factors or to sizes."""
        x, _, *by = [*node.inputs, None, None][:4]
        nearest = node.attributes.get_string("mode", "nearest") == "nearest" and "axes" not in node.attributes
        if x not in self.of or len(dimensions(x) or ()) != 4 or not nearest:
            return None
        return self._made(node, [self.of[x], None, *(value and self._sizes_last(value, node) for value in by)])

    def _reshape(self, node: ir.Node) -> ir.Value | None:
        """[batch, channels, height, width] to [batch, channels, positions], or back."""
        x, target = node.inputs
        assert x is not None
        assert target is not None
        before, after = dimensions(x) or (), dimensions(node.outputs[0]) or ()
        if x not in self.of or {len(before), len(after)} != {3, 4} or before[:2] != after[:2] or None in before[:2]:
            return None
        if len(after) == 3:
            if not isinstance(after[1], int):
                return None
            return self._made(node, [self.of[x], emit_constant(node, np.array([0, -1, after[1]], np.int64))], {"allowzero": 0})
        sizes = constant(target)
        if sizes is not None and (sizes == 0).any():  # copied from places that are others now
            if not isinstance(after[1], int) or (sizes[2:] == 0).any():
                return None
            last = np.array([0, *sizes[2:], after[1]], np.int64)
            return self._made(node, [self.of[x], emit_constant(node, last)], {"allowzero": 0})
        return self._made(node, [self.of[x], self._sizes_last(target, node)])

    def _sizes_last(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Four numbers, one for each axis, in the order of the axes of a twin."""
        numbers = constant(value)
        if numbers is not None:
            return emit_constant(before, numbers[list(TO_LAST[4])]) if numbers.size else value
        made = emit(before, "Gather", [value, emit_constant(before, np.array(TO_LAST[4], np.int64))], suffix="_channels_last")
        made.type, made.shape = value.type, ir.Shape([4])
        return made

    def _shape(self, node: ir.Node) -> None:
        """The sizes of a picture are those of its twin, in another order."""
        x, output = operands(node)[0], node.outputs[0]
        rank = len(dimensions(x) or ())
        if x not in self.of or output.is_graph_output():
            return
        axes = np.array(TO_FIRST[rank], np.int64)[integer(node, "start", 0) : integer(node, "end", rank)]
        sizes = emit(node, "Shape", [self.of[x]], suffix="_channels_last")
        sizes.type, sizes.shape = output.type, ir.Shape([rank])
        replace(node, emit(node, "Gather", [sizes, emit_constant(node, axes)]))


def _known(twin: ir.Value, value: ir.Value) -> ir.Value:
    """The twin with the type and the shape that follow from those of `value`."""
    twin.type = value.type
    shape: tuple[Dimension, ...] | None = dimensions(value)
    if shape is not None:
        twin.shape = ir.Shape([shape[axis] for axis in TO_LAST[len(shape)]])
    return twin


def _turned_constant(value: ir.Value, rank: int, before: ir.Node) -> ir.Value | None:
    """A constant that is broadcast to `rank` axes, as it must be for twins."""
    shape = static_shape(value)
    if shape is not None and all(size == 1 for size in shape) and len(shape) <= 1:
        return value  # a number, whatever the order of the axes
    if not is_constant(value) or shape is None or rank not in TO_LAST or len(shape) > rank or len(shape) == 0:
        return None
    source = stored(value)
    whole = (1,) * (rank - len(shape)) + shape
    make = functools.partial(_moved_from, source, whole, TO_LAST[rank])
    return add_made(graph_of(before), f"{value.name}.channels_last", make, source.dtype, [whole[axis] for axis in TO_LAST[rank]])


def _moved_from(source: ir.TensorProtocol, shape: tuple[int, ...], order: tuple[int, ...]) -> ir.Tensor:
    array = source.numpy().reshape(shape).transpose(order)
    return ir.Tensor(np.ascontiguousarray(array), dtype=source.dtype)


def _turned(weight: ir.Value, before: ir.Node) -> ir.Value:
    """[channels out, channels in, height, width] as [channels out, height, width, channels in]."""
    source = stored(weight)
    shape = tuple(lengths(source)[axis] for axis in TO_LAST[4])
    make = functools.partial(moved, source, TO_LAST[4], shape, source.dtype)
    return add_made(graph_of(before), f"{weight.name}.channels_last", make, source.dtype, shape)


def _run(model: ir.Model) -> int:
    """Returns how many nodes read pictures with the channels last, Transposes between the layouts that went included."""
    turned = 0
    for graph in list(model.graphs()):
        twins = _Twins()
        for node in list(graph):
            twins.visit(node)
        turned += twins.finish()
    return turned


CHANNELS_LAST = Pass("channels last", _run)
