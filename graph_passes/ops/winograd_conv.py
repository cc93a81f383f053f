"""conv3x3(x, w) + bias -> handheld.WinogradConv(x, G w G^T, bias), with what follows: + residual (..Add), silu(..) (..Silu).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, sections 4.1 to 4.3: A^T [(G w G^T) * (B^T x B)] A makes a tile
of m x m pixels with (m + 2)^2 products per channel where a direct convolution takes 9 m^2: 2.25 (m = 2), 4 (m = 4) or 5.06 (m = 6) times
as many. The weights are transformed when the model is written; B and A are the kernel's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import opset14, script
from onnxscript.values import Opset

from graph_passes.rule import Refused, adopt, refusals, replace
from graph_passes.values import (
    add_initializer,
    add_made,
    dimensions,
    graph_of,
    integer,
    integers,
    is_constant,
    is_standard,
    only_user,
    other_operand,
    producer,
    stored,
)

handheld = Opset("handheld", 1)
op: Any = opset14  # a body is ONNX spelled as Python: its types are not Python's

TILES = (2, 4, 6)  # m: pixels of an output tile on a side
# Where the polynomials are evaluated, infinity left out. At 4 the square roots keep the rows of B and A of one size: half the error of
# the usual 1, -1, 2, -2 at the same cost.
POINTS: dict[int, tuple[float, ...]] = {
    2: (0.0, 1.0, -1.0),
    4: (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)),
    6: (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0),
}
PANEL = 8  # output channels that a kernel computes at once
# input channels that lie side by side, as one product instruction takes them
PAIR = {ir.DataType.FLOAT: 1, ir.DataType.BFLOAT16: 2, ir.DataType.FLOAT16: 2}


def weight_transform(tile: int) -> np.ndarray:
    """G, float64 [tile + 2, 3]: the row of a point p is (1, p, p^2) / prod(p - q) over the other points q; that of infinity (0, 0, 1)."""
    points = np.array(POINTS[tile])
    distances = points[:, None] - points[None, :] + np.eye(len(points))
    rows = points[:, None] ** np.arange(3) / distances.prod(axis=1, keepdims=True)
    return np.vstack([rows, [0.0, 0.0, 1.0]])


def _recovery() -> np.ndarray:
    """float32 [3 tiles, 64, 9]: what (G w G^T) as a row of (tile + 2)^2 numbers is multiplied by to be w again, rows of zeros below.

    It is the pseudo-inverse of G on both sides: exact where the numbers are, and the nearest w where they are rounded.
    """
    table = np.zeros((len(TILES), 64, 9))
    for index, tile in enumerate(TILES):
        inverse = np.linalg.pinv(weight_transform(tile))
        table[index, : (tile + 2) ** 2] = np.kron(inverse, inverse).T
    return table.astype(np.float32)


RECOVERY = onnx.numpy_helper.from_array(_recovery())


# The bodies take the weights back out of U and leave the convolution to whoever runs them: on constants that is done once, when the
# model is loaded, and what runs is a plain Conv. No body can ask whether an optional input is there, so every form is an operator.
@script(handheld, default_opset=op)
def WinogradConv(x, u, bias, tile: int, channels_out: int):  # type: ignore[no-untyped-def]
    """The 3x3 convolution of x, stride 1, one pixel of zeros around it, + bias.

    x: float32 [N, C, H, W]; u: as `pack` makes it, for an even C where it has 16 bits; bias: float32 [channels_out].
    Returns float32 [N, channels_out, H, W].
    """
    zero = op.Constant(value_ints=[0])
    rest = op.Constant(value_ints=[-1])
    # [panels, points, C / pair, 8, pair] -> [channels out, C, points]
    pairs = op.Reshape(op.Cast(u, to=1), op.Constant(value_ints=[0, 0, 0, 0, -1]))
    by_channel = op.Transpose(pairs, perm=[0, 3, 2, 4, 1])
    sizes = op.Shape(by_channel)
    channels_in = op.Mul(op.Gather(sizes, op.Constant(value_ints=[2])), op.Gather(sizes, op.Constant(value_ints=[3])))
    points = op.Gather(sizes, op.Constant(value_ints=[4]))
    transformed = op.Reshape(by_channel, op.Concat(rest, channels_in, points, axis=0))
    index = op.Sub(op.Div(op.Constant(value_int=tile), op.Constant(value_int=2)), op.Constant(value_int=1))
    recovery = op.Slice(op.Gather(op.Constant(value=RECOVERY), index), zero, points, zero)
    count = op.Unsqueeze(op.Constant(value_int=channels_out), zero)
    rows = op.MatMul(op.Slice(transformed, zero, count, zero), recovery)
    w = op.Reshape(rows, op.Concat(count, channels_in, op.Constant(value_ints=[3, 3]), axis=0))
    return op.Conv(x, w, bias, pads=[1, 1, 1, 1])


@script(handheld, default_opset=op)
def WinogradConvAdd(x, u, bias, residual, tile: int, channels_out: int):  # type: ignore[no-untyped-def]
    """WinogradConv(x, u, bias) + residual; residual: float32 [N, channels_out, H, W]."""
    return op.Add(WinogradConv(x, u, bias, tile=tile, channels_out=channels_out), residual)


@script(handheld, default_opset=op)
def WinogradConvSilu(x, u, bias, tile: int, channels_out: int):  # type: ignore[no-untyped-def]
    """y * sigmoid(y) of y = WinogradConv(x, u, bias)."""
    y = WinogradConv(x, u, bias, tile=tile, channels_out=channels_out)
    return op.Mul(y, op.Sigmoid(y))


def packed_shape(channels_out: int, channels_in: int, tile: int, dtype: ir.DataType) -> tuple[int, ...]:
    """[panels, points, C, 8] for float32, [panels, points, C / 2, 8, 2] for bfloat16 and float16; see `pack`."""
    pair = PAIR[dtype]
    shape = (-(-channels_out // PANEL), (tile + 2) ** 2, -(-channels_in // pair), PANEL, pair)
    return shape if pair > 1 else shape[:-1]


def pack(weights: np.ndarray, tile: int, dtype: ir.DataType) -> np.ndarray:
    """float32 [O, C, 3, 3] -> U = G w G^T in the order in which a kernel reads it, channels filled up with zeros to whole panels and pairs.

    Transformed in float64, rounded once. The layout is that of runtime/ops/winograd_conv/winograd_conv.h.
    """
    channels_out, channels_in = weights.shape[:2]
    transform = weight_transform(tile)
    both = np.kron(transform, transform).T  # [9, points]
    shape, pair = packed_shape(channels_out, channels_in, tile, dtype), PAIR[dtype]
    result = np.empty(shape, dtype.numpy())
    for index in range(shape[0]):  # one panel at a time: what is held beside the result is small
        panel = np.zeros((PANEL, shape[2] * pair, 9))
        rows = weights[index * PANEL : (index + 1) * PANEL]
        panel[: len(rows), :channels_in] = rows.reshape(len(rows), channels_in, 9)
        split = (panel @ both).reshape(PANEL, shape[2], pair, shape[1])
        result[index] = split.transpose(3, 1, 0, 2).reshape(shape[1:])
    return result


@dataclass(frozen=True)
class Site:
    """A convolution that can become WinogradConv. `residual` is the other operand of `last` where that is an Add.

    `channels_out`, `channels_in`: of its weights, [channels_out, channels_in, 3, 3].
    """

    convolution: ir.Node
    last: ir.Node
    op_type: str
    residual: ir.Value | None
    channels_out: int
    channels_in: int

    def weight_bytes(self) -> int:
        """Of the plain weights."""
        return 4 * 9 * self.channels_out * self.channels_in

    def packed_bytes(self, tile: int, dtype: ir.DataType) -> int:
        """Of the transformed ones."""
        return int(math.prod(packed_shape(self.channels_out, self.channels_in, tile, dtype)) * dtype.itemsize)


def sites(model: ir.Model) -> list[Site]:
    """Every convolution that the rule takes, in the order of the graph."""
    found = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if is_candidate(node):
            try:
                found.append(site(node))
            except Refused:
                continue
    return found


def refused_convolutions(model: ir.Model) -> list[str]:
    """A sentence for each 3x3 convolution that is no site, and why."""
    return refusals(model, is_candidate, site)


def is_candidate(node: ir.Node) -> bool:
    """Whether the node is a convolution with a kernel of 3x3."""
    if not is_standard(node, "Conv"):
        return False
    weights = node.inputs[1]
    kernel = integers(node, "kernel_shape") or (list(weights.shape)[2:] if weights is not None and weights.shape is not None else [])
    return kernel == [3, 3]


def site(node: ir.Node) -> Site:
    """The convolution and what follows it. Raises Refused with the reason where it is none that Winograd's algorithm takes."""
    x, weights = node.inputs[:2]
    if not is_constant(weights):
        raise Refused("its weights are only known at run time")
    assert x is not None
    assert weights.shape is not None
    for name, what in (("strides", "stride"), ("dilations", "dilation")):
        if (steps := integers(node, name) or [1, 1]) != [1, 1]:
            raise Refused(f"its {what} is {steps[0]}x{steps[1]}, and the algorithm's is 1x1")
    if integer(node, "group", 1) != 1:
        raise Refused(f"it has {integer(node, 'group', 1)} groups of channels, and the kernel takes one")
    if (pads := _pads(node)) != [1, 1, 1, 1]:
        raise Refused(f"its padding is {pads}, and the kernel's is one pixel on every side")
    for value, what in ((x, "input"), (weights, "weights")):
        if value.dtype != ir.DataType.FLOAT:
            raise Refused(f"the {what} is {value.dtype or 'of unknown type'}, and the kernel takes FLOAT")
    if len(node.inputs) > 2 and node.inputs[2] is not None and node.inputs[2].dtype != ir.DataType.FLOAT:
        raise Refused(f"the bias is {node.inputs[2].dtype or 'of unknown type'}, and the kernel takes FLOAT")
    last, op_type, residual = _epilogue(node)
    return Site(node, last, op_type, residual, int(weights.shape[0]), int(weights.shape[1]))  # type: ignore[arg-type]


def _pads(node: ir.Node) -> list[int]:
    automatic = node.attributes.get("auto_pad")
    kind = "NOTSET" if automatic is None else automatic.as_string()
    if kind == "VALID":
        return [0, 0, 0, 0]
    return [1, 1, 1, 1] if kind.startswith("SAME") else integers(node, "pads") or [0, 0, 0, 0]


def _epilogue(node: ir.Node) -> tuple[ir.Node, str, ir.Value | None]:
    """The last node of the site, its operator, and the residual: what follows is taken in where nothing else reads what is between."""
    y = node.outputs[0]
    readers = [use.node for use in y.uses()]
    if y.is_graph_output():
        return node, "WinogradConv", None
    add = only_user(y, "Add")
    if add is not None:
        residual = other_operand(add, y)
        # a value per channel, such as the time's embedding [N, C, 1, 1], is added too, and is no residual; nor is y + y
        sizes = _sizes(y)
        if residual is not y and residual.dtype == ir.DataType.FLOAT and sizes is not None and sizes == _sizes(residual):
            return add, "WinogradConvAdd", residual
    sigmoid = next((each for each in readers if is_standard(each, "Sigmoid")), None)
    if sigmoid is not None and len(readers) == 2:
        product = only_user(sigmoid.outputs[0], "Mul")
        if product is not None and product in readers:
            return product, "WinogradConvSilu", None
    return node, "WinogradConv", None


def _sizes(value: ir.Value) -> tuple[int | str, ...] | None:
    """The shape of a value, None where a size has neither number nor name. What a 3x3 convolution makes is as high and wide as its input:
    ONNX's inference makes up new names for sizes that are names."""
    sizes = dimensions(value)
    convolution = producer(value, "Conv")
    if sizes is not None and convolution is not None and is_candidate(convolution):
        before = dimensions(convolution.inputs[0])
        if before is not None and len(before) == len(sizes) and _keeps_size(convolution):
            sizes = (before[0], sizes[1], *before[2:])
    known = tuple(size for size in sizes or () if size is not None)
    return known if sizes is not None and len(known) == len(sizes) else None


def _keeps_size(node: ir.Node) -> bool:
    return _pads(node) == [1, 1, 1, 1] and all((integers(node, name) or [1, 1]) == [1, 1] for name in ("strides", "dilations"))


def fuse_winograd(model: ir.Model, chosen: Mapping[ir.Node, tuple[int, ir.DataType]]) -> int:
    """Makes a Winograd convolution of every node in `chosen`: {convolution: (tile, type of its weights)}. Returns how many.

    No weight is read: the new ones are transformed while they are written, one tensor after the other.
    """
    made: dict[tuple[ir.Value, int, ir.DataType], ir.Value] = {}
    for convolution, (tile, dtype) in chosen.items():
        found = site(convolution)  # asked again: an Add between two sites is taken in by the first of them
        x, weights = convolution.inputs[:2]
        graph, last = graph_of(convolution), found.last
        assert weights is not None
        if (weights, tile, dtype) not in made:
            make = functools.partial(_transformed, stored(weights), tile, dtype)
            shape = packed_shape(found.channels_out, found.channels_in, tile, dtype)
            made[weights, tile, dtype] = add_made(graph, f"{weights.name}.winograd", make, dtype, shape)
        inputs = [x, made[weights, tile, dtype], _bias(convolution, found.channels_out)]
        inputs += [found.residual] if found.residual is not None else []
        attributes = {"tile": tile, "channels_out": found.channels_out}
        node = ir.node(
            found.op_type,
            inputs,
            attributes,
            domain=handheld.domain,
            name=convolution.name,
            metadata_props=dict(convolution.metadata_props),
        )
        graph.insert_before(last, node)
        adopt(node.outputs[0], convolution.outputs[0])
        replace(last, node.outputs[0])
    if chosen:
        RemoveUnusedNodesPass()(model)
    return len(chosen)


def _bias(convolution: ir.Node, channels_out: int) -> ir.Value:
    given = convolution.inputs[2] if len(convolution.inputs) > 2 else None
    if given is not None:
        return given
    assert isinstance(convolution.graph, ir.Graph)
    return add_initializer(convolution.graph, ir.tensor(np.zeros(channels_out, np.float32)), f"{convolution.name or 'Conv'}_bias")


def _transformed(source: ir.TensorProtocol, tile: int, dtype: ir.DataType) -> ir.Tensor:
    return ir.Tensor(pack(source.numpy(), tile, dtype), dtype=dtype)
