"""GroupNormalization(x) -> handheld.GroupNorm(x);  silu(GroupNormalization(x)) -> handheld.GroupNormSilu(x).

Group normalization: Wu and He, "Group Normalization", 2018, equation 1. Exporters write it in two ways, and both are found:
Reshape, InstanceNormalization, Reshape, Mul, Add up to opset 20, and GroupNormalization from opset 21 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset14, script
from onnxscript.values import Opset

from graph_passes.rule import Refused, adopt, emit, emit_constant, fusion, replace
from graph_passes.values import (
    add_made,
    constant,
    dimensions,
    integer,
    is_constant,
    is_standard,
    only_user,
    operands,
    other_operand,
    producer,
    same_shape,
    stored,
)

handheld = Opset("handheld", 1)
op: Any = opset14  # a body is ONNX spelled as Python: its types are not Python's

KERNEL_TYPES = (ir.DataType.FLOAT,)


# The bodies keep to operators whose form is the same from opset 14 to 23, so that one text serves every graph. ReduceMean is not one
# of them (its axes became an input at 18), hence the sum over the count. The mean is subtracted before anything else is done:
# folded into the bias it would lose the digits of a large mean.
@script(handheld, default_opset=op)
def GroupNorm(x, scale, bias, epsilon: float, groups: int):  # type: ignore[no-untyped-def]
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, with the mean and the population variance of every group of channels.

    x: float32 [N, C, ...]; scale, bias: float32 [C]; C is a multiple of `groups`. Returns the shape of x.
    """
    last_axis = op.Constant(value_ints=[2])
    keep = op.Constant(value_ints=[0])
    rest = op.Constant(value_ints=[-1])
    shape = op.Shape(x)
    group_count = op.Reshape(op.Constant(value_int=groups), op.Constant(value_ints=[1]))
    grouped = op.Reshape(x, op.Concat(keep, group_count, rest, axis=0))  # [N, groups, values of a group]
    count = op.Cast(op.Gather(op.Shape(grouped), last_axis), to=1)
    centered = op.Sub(grouped, op.Div(op.ReduceSum(grouped, last_axis), count))
    variance = op.Div(op.ReduceSum(op.Mul(centered, centered), last_axis), count)
    normalized = op.Div(centered, op.Sqrt(op.Add(variance, op.Constant(value_float=epsilon))))
    channels = op.Reshape(normalized, op.Concat(keep, op.Shape(scale), rest, axis=0))  # [N, C, values of a channel]
    one = op.Constant(value_ints=[1])
    scaled = op.Mul(channels, op.Unsqueeze(scale, one))
    return op.Reshape(op.Add(scaled, op.Unsqueeze(bias, one)), shape)


@script(handheld, default_opset=op)
def GroupNormSilu(x, scale, bias, epsilon: float, groups: int):  # type: ignore[no-untyped-def]
    """y * sigmoid(y) of y = GroupNorm(x, scale, bias)."""
    y = GroupNorm(x, scale, bias, epsilon=epsilon, groups=groups)
    return op.Mul(y, op.Sigmoid(y))


@dataclass(frozen=True)
class Site:
    """A group normalization as an exporter wrote it: its operands, and the node whose output becomes that of the fused one.

    `view`, where there is one, is the node whose shape x takes first.
    """

    last: ir.Node
    op_type: str
    x: ir.Value
    view: ir.Node | None
    scale: ir.Value
    bias: ir.Value
    epsilon: float
    groups: int


def is_candidate(node: ir.Node) -> bool:
    return is_standard(node, "InstanceNormalization", "GroupNormalization")


def find_site(node: ir.Node, types: tuple[ir.DataType, ...] = KERNEL_TYPES) -> Site:
    """The group normalization around `node`. Raises Refused with the reason where it is none, or not one for a kernel of these types."""
    around = _around_instance_normalization if node.op_type == "InstanceNormalization" else _of_group_normalization
    return around(node, types)


def _of_group_normalization(node: ir.Node, types: tuple[ir.DataType, ...]) -> Site:
    x, scale, bias = operands(node)[:3]
    groups = integer(node, "num_groups", 1)
    channels, _ = _check_input(x, groups, types)
    _check_affine(scale, bias, {(channels,)})  # up to opset 20 there is one value per group, which is another function
    return _with_silu(node, x, None, scale, bias, _epsilon(node), groups)


def _around_instance_normalization(node: ir.Node, types: tuple[ir.DataType, ...]) -> Site:
    grouped, ones, zeros = node.inputs[:3]
    first = producer(grouped, "Reshape")
    second = only_user(node.outputs[0], "Reshape")
    scaled = second and only_user(second.outputs[0], "Mul")
    shifted = scaled and only_user(scaled.outputs[0], "Add")
    if first is None or second is None or scaled is None or shifted is None:
        raise Refused("it does not stand between Reshape and Reshape, Mul, Add with no other reader of the values between them")
    if not _is_filled_with(ones, 1) or not _is_filled_with(zeros, 0):
        raise Refused("it has a scale and a bias of its own")
    groups = _length(ones)
    x, restored = operands(first)[0], second.outputs[0]
    if not _groups_channels(first, x, groups):
        raise Refused(f"the Reshape in front of it is not known to make [batch, {groups}, ...] of the input")
    view = None if _restores(second, x) else second
    if view is not None and not _keeps_batch(view, x):
        raise Refused("the Reshape behind it is not known to make [batch, channels, ...] of its output")
    channels, rank = _check_input(x if view is None else restored, groups, types)
    scale, bias = other_operand(scaled, restored), other_operand(shifted, scaled.outputs[0])
    over_positions = (channels,) + (1,) * (rank - 2)
    _check_affine(scale, bias, {over_positions, (1, *over_positions)})
    return _with_silu(shifted, x, view, scale, bias, _epsilon(node), groups)


def _check_input(x: ir.Value, groups: int, types: tuple[ir.DataType, ...]) -> tuple[int, int]:
    """Number of channels and rank of an input that the kernel takes."""
    shape = dimensions(x)
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        raise Refused("the input is not known to be [batch, channels, ...]")
    if x.dtype not in types:
        raise Refused(f"the input is {x.dtype or 'of unknown type'}, and the kernel takes {' and '.join(each.name for each in types)}")
    if groups < 1 or shape[1] % groups:
        raise Refused(f"{shape[1]} channels are no multiple of {groups} groups")
    return shape[1], len(shape)


def _check_affine(scale: ir.Value, bias: ir.Value, shapes: set[tuple[int, ...]]) -> None:
    for name, value in (("scale", scale), ("bias", bias)):
        if dimensions(value) not in shapes:
            raise Refused(f"the {name} is not known to hold one value per channel")


def _with_silu(last: ir.Node, x: ir.Value, view: ir.Node | None, scale: ir.Value, bias: ir.Value, epsilon: float, groups: int) -> Site:
    """Takes y * sigmoid(y) in where it is all that becomes of the normalized y."""
    y = last.outputs[0]
    readers = [use.node for use in y.uses()]
    sigmoid = next((each for each in readers if is_standard(each, "Sigmoid")), None)
    product = sigmoid and only_user(sigmoid.outputs[0], "Mul")
    if product is not None and not y.is_graph_output() and len(readers) == 2 and product in readers:
        return Site(product, "GroupNormSilu", x, view, scale, bias, epsilon, groups)
    return Site(last, "GroupNorm", x, view, scale, bias, epsilon, groups)


def _fuse(site: Site, normalization: ir.Node) -> None:
    last, x = site.last, site.x
    if site.view is not None:
        x = emit(last, "Reshape", [x, site.view.inputs[1]])
        adopt(x, site.view.outputs[0])
    inputs = [x, per_channel(site.scale, last), per_channel(site.bias, last)]
    attributes = {"epsilon": site.epsilon, "groups": site.groups}
    node = ir.node(site.op_type, inputs, attributes, domain=handheld.domain, name=normalization.name)
    assert last.graph is not None
    last.graph.insert_before(last, node)
    adopt(node.outputs[0], x)
    replace(last, node.outputs[0])


def per_channel(value: ir.Value, before: ir.Node) -> ir.Value:
    """The value per channel as [C]: itself, an initializer that reads the original when it is written, or a Reshape."""
    shape, graph = dimensions(value), before.graph
    assert shape is not None
    if len(shape) == 1:
        return value
    if is_constant(value) and isinstance(graph, ir.Graph):
        tensor = stored(value)
        return add_made(graph, f"{value.name}_flat", lambda: ir.tensor(tensor.numpy().reshape(-1)), tensor.dtype, [tensor.size])
    return emit(before, "Reshape", [value, emit_constant(before, np.array([-1], np.int64))])


def _epsilon(node: ir.Node) -> float:
    attribute = node.attributes.get("epsilon")
    return 1e-5 if attribute is None else float(attribute.as_float())


def _is_filled_with(value: ir.Value | None, number: float) -> bool:
    array = constant(value)
    return array is not None and bool((array == number).all())


def _length(value: ir.Value | None) -> int:
    array = constant(value)
    return 0 if array is None else array.size


def _groups_channels(reshape: ir.Node, x: ir.Value, groups: int) -> bool:
    """Whether the Reshape makes [N, groups, ...] of an x that has N images: then each group is as many whole channels as the others."""
    target, shape = constant(reshape.inputs[1]), dimensions(x)
    if target is None or not shape or target.size < 3 or target[1] != groups:
        return False
    return bool(_copies_batch(reshape, target) or target[0] == shape[0])


def _keeps_batch(reshape: ir.Node, x: ir.Value) -> bool:
    """Whether the Reshape gives as many images as x has, and may be put in front of the normalization, which it is behind of."""
    target, images, shape = constant(reshape.inputs[1]), dimensions(x), dimensions(reshape.outputs[0])
    if target is not None and (target[1:] == 0).any():
        return False  # these sizes are copied from an input that will be another one
    if target is not None and _copies_batch(reshape, target):
        return True
    return bool(images and shape and images[0] is not None and images[0] == shape[0])


def _copies_batch(reshape: ir.Node, target: np.ndarray) -> bool:
    return bool(target.size and target[0] == 0 and integer(reshape, "allowzero", 0) == 0)


def _restores(reshape: ir.Node, x: ir.Value) -> bool:
    shape_of = producer(reshape.inputs[1], "Shape")
    whole = shape_of is not None and shape_of.inputs[0] is x and all(each.as_int() == 0 for each in shape_of.attributes.values())
    return whole or same_shape(reshape.outputs[0], x)


FUSE_GROUP_NORM = fusion("fuse group norm", is_candidate, find_site, _fuse)
