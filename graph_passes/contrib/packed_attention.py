"""MultiHeadAttention(x Wq, x Wk, x Wv) -> MultiHeadAttention(x W as [batch, tokens, heads, 3, dim]);  (q, y Wk, y Wv) -> (q, [..., 2, dim])

One product in the place of three or two, in the forms that the CUDA provider's fused kernels read: packed QKV for self-attention, packed
KV for cross-attention. The columns of W are those of Wq, Wk and Wv, head by head; they are put together when the weights are written.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graph_passes.contrib.nodes import bias_of, insert, is_contrib
from graph_passes.rule import Refused, adopt, emit, emit_constant, fusion, replace
from graph_passes.values import (
    Dimension,
    add_made,
    dimensions,
    graph_of,
    integer,
    is_constant,
    is_standard,
    static_shape,
    stored,
)


@dataclass(frozen=True)
class _Layer:
    """A linear layer that makes q, k or v: x [batch, tokens, channels], its weight [channels, heads * dim] and its bias, if it has one."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True)
class _Site:
    """What is packed: three layers of one input, or the two of the keys and the values."""

    layers: tuple[_Layer, ...]
    heads: int
    dim: int


def _is_candidate(node: ir.Node) -> bool:
    return is_contrib(node, "MultiHeadAttention") and len(node.inputs) > 2 and node.inputs[2] is not None


def _site(node: ir.Node) -> _Site:
    heads = integer(node, "num_heads", 1)
    width = (dimensions(node.inputs[0]) or (None,))[-1]
    if not isinstance(width, int):
        raise Refused("the size of its heads is not known")
    k, v = (_layer(value, width) for value in node.inputs[1:3])
    if k.x is not v.x or (k.bias is None) != (v.bias is None):
        raise Refused("keys and values are not made of one tensor, or one of them alone has a bias")
    try:
        q = _layer(node.inputs[0], width)
    except Refused:
        q = None
    own = q is not None and q.x is k.x and (q.bias is None) == (k.bias is None)
    return _Site((q, k, v) if own and q is not None else (k, v), heads, width // heads)


def _layer(value: ir.Value | None, width: int) -> _Layer:
    """The linear layer that makes `value`, for MultiHeadAttention alone."""
    last = value.producer() if value is not None else None
    with_bias = bias_of(last, width)
    made, bias = with_bias if with_bias is not None else (value, None)
    product = made.producer() if made is not None else None
    if value is None or made is None or product is None or not is_standard(product, "MatMul") or len(value.uses()) + len(made.uses()) > 2:
        raise Refused("q, k or v is not made by a linear layer for it alone")
    x, weight = product.inputs
    if x is None or not is_constant(weight) or len(weight.uses()) > 1 or len(static_shape(weight) or ()) != 2:
        raise Refused("the weight of q, k or v is no matrix of its own")
    return _Layer(x, weight, bias)


def _fuse(site: _Site, node: ir.Node) -> None:
    count, width = len(site.layers), site.heads * site.dim
    first = site.layers[0]
    channels, source = (static_shape(first.weight) or (0,))[0], node.inputs[0 if count == 3 else 1]
    batch_and_tokens = (dimensions(source) or (None, None))[:2]
    weights = _packed([layer.weight for layer in site.layers], site, (channels, count * width), node)
    packed = _known(emit(node, "MatMul", [first.x, weights], suffix="_packed"), weights, *batch_and_tokens, count * width)
    biases = [layer.bias for layer in site.layers if layer.bias is not None]
    if biases:
        bias = _packed(biases, site, (count * width,), node)
        packed = _known(emit(node, "Add", [packed, bias], suffix="_packed_bias"), weights, *batch_and_tokens, count * width)
    target = emit_constant(node, np.array([0, 0, site.heads, count, site.dim], np.int64))
    view = emit(node, "Reshape", [packed, target], suffix="_packed_heads")
    _known(view, weights, *batch_and_tokens, site.heads, count, site.dim)
    operands = [view] if count == 3 else [node.inputs[0], view]
    rest = node.inputs[3:]  # bias and masks, which keep their places
    inputs = [*operands, *[None] * (3 - len(operands)), *rest] if rest else operands
    result = insert(node, "MultiHeadAttention", inputs, dict(node.attributes), node.name).outputs[0]
    adopt(result, node.outputs[0])
    replace(node, result)


def _known(value: ir.Value, like: ir.Value, *sizes: Dimension) -> ir.Value:
    """The value with its type and shape."""
    value.type, value.shape = like.type, ir.Shape(sizes)
    return value


def _packed(values: list[ir.Value], site: _Site, shape: tuple[int, ...], before: ir.Node) -> ir.Value:
    """[..., heads, number of values, dim] of several [..., heads * dim], as one initializer that is made when it is written."""
    sources = [stored(value) for value in values]
    dtype = sources[0].dtype
    make = functools.partial(_interleaved, sources, site.heads, site.dim, dtype)
    return add_made(graph_of(before), f"{values[0].name}.{'qkv' if len(values) == 3 else 'kv'}", make, dtype, shape)


def _interleaved(sources: list[ir.TensorProtocol], heads: int, dim: int, dtype: ir.DataType) -> ir.Tensor:
    arrays = [source.numpy() for source in sources]
    apart = [array.reshape(*array.shape[:-1], heads, dim) for array in arrays]
    return ir.Tensor(np.stack(apart, axis=-2).reshape(*arrays[0].shape[:-1], -1), dtype=dtype)


PACK_ATTENTION = fusion("pack attention", _is_candidate, _site, _fuse)
