"""x W + b -> handheld.Linear(x, packed W, b), with what follows it: + residual (LinearAdd), v * gelu(g), [v, g] of it (LinearGeglu);
the same along the channels of a picture, a convolution of one pixel -> handheld.PointwiseConv(x, W, b), + residual (PointwiseConvAdd).

The weights are packed when the model is written, into the panels that every kernel reads: the kernels use them where the file is mapped,
and nothing is packed, or held twice, when a session starts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset14, script
from onnxscript.values import Opset

from graph_passes.ops.gelu import Geglu
from graph_passes.rule import Refused, adopt, fusion, replace
from graph_passes.step import Pass
from graph_passes.values import (
    add_initializer,
    add_made,
    dimensions,
    graph_of,
    integer,
    integers,
    is_constant,
    is_standard,
    lengths,
    only_user,
    operands,
    other_operand,
    same_shape,
    static_shape,
    stored,
)

handheld = Opset("handheld", 1)
op: Any = opset14  # a body is ONNX spelled as Python: its types are not Python's

PANEL = 16  # columns that lie side by side in the file
TYPES = {"fp32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}
PAIR = {ir.DataType.FLOAT: 1, ir.DataType.BFLOAT16: 2, ir.DataType.FLOAT16: 2}  # rows side by side, as one product instruction takes them


@script(handheld, default_opset=op)
def Linear(x, weights, bias, channels_in: int, channels_out: int):  # type: ignore[no-untyped-def]
    """x W + bias. x: float32 [..., channels_in]; bias: float32 [channels_out]; returns float32 [..., channels_out].

    weights: float32, bfloat16 or float16 [panels of 16 columns, steps, 16, rows of a step], as `pack` makes them: W and zeros around it.
    """
    one = op.Constant(value_ints=[1])
    panels = op.Gather(op.Shape(weights), op.Constant(value_ints=[0]))
    columns = op.Mul(panels, op.Constant(value_ints=[16]))
    rows_first = op.Transpose(op.Cast(weights, to=1), perm=[1, 3, 0, 2])  # [steps, rows of a step, panels, 16]
    padded = op.Reshape(rows_first, op.Concat(op.Constant(value_ints=[-1]), columns, axis=0))
    depth = op.Reshape(op.Constant(value_int=channels_in), one)
    width = op.Reshape(op.Constant(value_int=channels_out), one)
    matrix = op.Slice(padded, op.Constant(value_ints=[0, 0]), op.Concat(depth, width, axis=0), op.Constant(value_ints=[0, 1]))
    return op.Add(op.MatMul(x, matrix), bias)


@script(handheld, default_opset=op)
def LinearAdd(x, weights, bias, residual, channels_in: int, channels_out: int):  # type: ignore[no-untyped-def]
    """x W + bias + residual, a tensor of the result's shape."""
    return op.Add(Linear(x, weights, bias, channels_in=channels_in, channels_out=channels_out), residual)


@script(handheld, default_opset=op)
def LinearGeglu(x, weights, bias, channels_in: int, channels_out: int):  # type: ignore[no-untyped-def]
    """v * gelu(g), [v, g] = x W + bias. channels_out are those of W: the result has half of them."""
    return Geglu(Linear(x, weights, bias, channels_in=channels_in, channels_out=channels_out))


@script(handheld, default_opset=op)
def PointwiseConv(x, weights, bias):  # type: ignore[no-untyped-def]
    """The linear layer along the channels of a picture: a convolution of one pixel, + bias.

    x: float32 [N, C, H, W]; weights: float32 [O, C, 1, 1], or bfloat16 or float16 for an even C; bias: float32 [O].
    Returns float32 [N, O, H, W].
    """
    return op.Conv(x, op.Cast(weights, to=1), bias)


@script(handheld, default_opset=op)
def PointwiseConvAdd(x, weights, bias, residual):  # type: ignore[no-untyped-def]
    """PointwiseConv(x, weights, bias) + residual; residual: float32 [N, O, H, W]."""
    return op.Add(PointwiseConv(x, weights, bias), residual)


def pack(weights: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """The matrix [K, N] as [ceil(N / 16), ceil(K / pair), 16, pair] of `dtype`, zeros where there is no row or no column."""
    rows, columns = weights.shape
    pair = PAIR[dtype]
    padded = np.pad(weights, ((0, -rows % pair), (0, -columns % PANEL)))
    panels = padded.reshape(-1, pair, padded.shape[1] // PANEL, PANEL).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(panels).astype(dtype.numpy(), copy=False)


@dataclass(frozen=True)
class _Site:
    """A linear layer as an exporter wrote it: its operands, and the node whose output becomes that of the fused one.

    `transposed`: the weight is [N, K], as Gemm may have it. `bias` and `residual` are None where there are none.
    """

    last: ir.Node
    op_type: str
    x: ir.Value
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None
    residual: ir.Value | None
    channels: tuple[int, int]


def fuse_linear(precision: str) -> Pass:
    """The pass that packs the weights of every linear layer, as float32 ("fp32"), bfloat16 ("bf16") or float16 ("fp16")."""
    return fusion("fuse linear", _is_candidate, _site, functools.partial(_fuse, dtype=TYPES[precision]))


def _is_candidate(node: ir.Node) -> bool:
    return is_standard(node, "MatMul", "Gemm") and is_constant(node.inputs[1]) and isinstance(node.graph, ir.Graph)


def _site(node: ir.Node) -> _Site:
    """The linear layer around `node`. Raises Refused with the reason where it is none, or not one for the kernel."""
    x, weight = operands(node)[:2]
    if x.dtype != ir.DataType.FLOAT or weight.dtype != ir.DataType.FLOAT:
        raise Refused(f"its operands are {x.dtype or 'of unknown type'} and {weight.dtype}, and the kernel takes FLOAT")
    sizes, shape = static_shape(weight), dimensions(x)
    if sizes is None or len(sizes) != 2 or 0 in sizes:
        raise Refused("the weight is no matrix")
    if not shape:
        raise Refused("the input is not known to be [..., channels]")
    if len(weight.uses()) > 1:
        raise Refused("the weight is read by another node too, and would be stored twice")
    transposed = integer(node, "transB", 0) == 1
    rows, columns = sizes[::-1] if transposed else sizes
    last, bias = _with_bias(node, columns)
    found = _Site(last, "Linear", x, weight, transposed, bias, None, (rows, columns))
    return _with_geglu(found) or _with_residual(found) or found


def _with_bias(node: ir.Node, columns: int) -> tuple[ir.Node, ir.Value | None]:
    """The node at which the layer ends, and its bias."""
    if node.op_type == "Gemm":
        scales = [node.attributes.get(name) for name in ("alpha", "beta")]
        if integer(node, "transA", 0) or any(each is not None and each.as_float() != 1 for each in scales):
            raise Refused("it transposes its input or scales a term")
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and dimensions(bias) != (columns,):
            raise Refused("what it adds is not known to be a bias, one value per column")
        return node, bias
    add = only_user(node.outputs[0], "Add")
    bias = other_operand(add, node.outputs[0]) if add is not None else None
    return (add, bias) if add is not None and bias is not None and dimensions(bias) == (columns,) else (node, None)


def _with_geglu(site: _Site) -> _Site | None:
    """Takes GEGLU in where it is all that becomes of the layer: half of the numbers are written, and none of them read again."""
    readers = [use.node for use in site.last.outputs[0].uses()]
    if len(readers) != 1 or (readers[0].domain, readers[0].op_type) != (handheld.domain, "Geglu") or site.channels[1] % (2 * PANEL):
        return None
    return _Site(readers[0], "LinearGeglu", site.x, site.weight, site.transposed, site.bias, None, site.channels)


def _with_residual(site: _Site) -> _Site | None:
    """Takes the sum with a tensor of the same shape in, where it is all that becomes of the layer."""
    y = site.last.outputs[0]
    add = only_user(y, "Add")
    residual = other_operand(add, y) if add is not None else None
    if add is None or residual is None or residual is y or is_constant(residual) or not same_shape(residual, y):
        return None
    return _Site(add, "LinearAdd", site.x, site.weight, site.transposed, site.bias, residual, site.channels)


def _fuse(site: _Site, product: ir.Node, dtype: ir.DataType) -> None:
    rows, columns = site.channels
    graph = graph_of(product)
    shape = (-(-columns // PANEL), -(-rows // PAIR[dtype]), PANEL, PAIR[dtype])
    make = functools.partial(_packed, stored(site.weight), site.transposed, dtype)
    weights = add_made(graph, f"{site.weight.name}_packed", make, dtype, shape)
    bias = site.bias
    if bias is None:
        bias = add_initializer(graph, ir.tensor(np.zeros(columns, np.float32)), f"{site.weight.name}_bias")
    inputs = [site.x, weights, bias, *([site.residual] if site.residual is not None else [])]
    attributes = {"channels_in": rows, "channels_out": columns}
    node = ir.node(site.op_type, inputs, attributes, domain=handheld.domain, name=site.last.name)
    graph.insert_before(site.last, node)
    adopt(node.outputs[0], site.last.outputs[0])
    replace(site.last, node.outputs[0])


def _packed(source: ir.TensorProtocol, transposed: bool, dtype: ir.DataType) -> ir.Tensor:
    array = source.numpy()
    return ir.Tensor(pack(array.T if transposed else array, dtype), dtype=dtype)


def fuse_pointwise(precision: str) -> Pass:
    """The pass that makes PointwiseConv of convolutions of one pixel, with weights as those of `fuse_linear`."""
    return fusion("fuse pointwise convolutions", _is_pointwise, _pointwise_site, functools.partial(_fuse_pointwise, dtype=TYPES[precision]))


def _is_pointwise(node: ir.Node) -> bool:
    if not is_standard(node, "Conv") or not is_constant(node.inputs[1]) or not isinstance(node.graph, ir.Graph):
        return False
    return (static_shape(node.inputs[1]) or ())[2:] == (1, 1)


def _pointwise_site(node: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The last node of the site of a convolution, and the residual that it adds. Raises Refused with the reason where it is no site."""
    x, weight = operands(node)[:2]
    if x.dtype != ir.DataType.FLOAT or weight.dtype != ir.DataType.FLOAT:
        raise Refused(f"its operands are {x.dtype or 'of unknown type'} and {weight.dtype}, and the kernel takes FLOAT")
    if integer(node, "group", 1) != 1 or any(integers(node, "pads") or []) or set(integers(node, "strides") or [1]) != {1}:
        raise Refused("it has groups, a border or a stride")
    if len(weight.uses()) > 1:
        raise Refused("the weight is read by another node too, and would be stored twice")
    y = node.outputs[0]
    add = only_user(y, "Add")
    residual = other_operand(add, y) if add is not None else None
    if add is None or residual is None or residual is y or is_constant(residual) or not same_shape(residual, y):
        return node, None
    return add, residual


def _fuse_pointwise(site: tuple[ir.Node, ir.Value | None], convolution: ir.Node, dtype: ir.DataType) -> None:
    last, residual = site
    graph, weight = graph_of(convolution), convolution.inputs[1]
    source = stored(weight)
    channels_out, channels_in = lengths(source)[:2]
    if dtype != ir.DataType.FLOAT and channels_in % PAIR[dtype] == 0:
        assert weight is not None
        weight = add_made(graph, f"{weight.name}_{dtype.name.lower()}", functools.partial(_rounded, source, dtype), dtype, lengths(source))
    bias = convolution.inputs[2] if len(convolution.inputs) > 2 else None
    if bias is None:
        bias = add_initializer(graph, ir.tensor(np.zeros(channels_out, np.float32)), f"{convolution.name or 'Conv'}_bias")
    inputs = [convolution.inputs[0], weight, bias, *([residual] if residual is not None else [])]
    op_type = "PointwiseConv" if residual is None else "PointwiseConvAdd"
    node = ir.node(op_type, inputs, {}, domain=handheld.domain, name=convolution.name, metadata_props=dict(convolution.metadata_props))
    graph.insert_before(last, node)
    adopt(node.outputs[0], last.outputs[0])
    replace(last, node.outputs[0])


def _rounded(source: ir.TensorProtocol, dtype: ir.DataType) -> ir.Tensor:
    return ir.Tensor(source.numpy().astype(dtype.numpy()), dtype=dtype)
