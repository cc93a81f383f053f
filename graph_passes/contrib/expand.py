"""com.microsoft's operators of this folder -> standard ones, by the definitions in ONNX Runtime's operator schemas.

ONNX Runtime lets no function of a model take the place of an operator that it has a schema of, so these nodes carry no bodies. This is
what stands in for them where their kernels can't run: parity on the CPU provider, shape inference, the count of work.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graph_passes.contrib.nodes import DOMAIN
from graph_passes.contrib.quantized import dequantize_linear, matmul_nbits, quantize_linear
from graph_passes.errors import GraphError
from graph_passes.norms import scaled, standardized
from graph_passes.rule import emit, emit_constant
from graph_passes.step import Pass
from graph_passes.values import dimensions, integer

NHWC_TO_NCHW, NCHW_TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


def expand(model: ir.Model) -> int:
    """Returns how many nodes were expanded. Errors: GraphError for an operator of the domain, or a form of one, that is not known here."""
    expanded = 0
    for graph in list(model.graphs()):
        for node in graph:
            if node.domain != DOMAIN:
                continue
            if node.op_type not in DEFINITIONS:
                raise GraphError(f"'{node.name}' is a {DOMAIN}.{node.op_type}, which has no definition here.")
            results = DEFINITIONS[node.op_type](node)
            for index, value in results.items():
                output = node.outputs[index]
                value.type, value.shape, name = output.type, output.shape, output.name
                output.replace_all_uses_with(value, replace_graph_outputs=True)
                value.name = name
            graph.remove(node, safe=True)
            expanded += 1
    model.graph.opset_imports.pop(DOMAIN, None)
    return expanded


def _group_norm(node: ir.Node) -> dict[int, ir.Value]:
    x, gamma, beta = node.inputs[:3]
    assert x is not None
    return {0: _normalized(node, x, gamma, beta)}


def _skip_group_norm(node: ir.Node) -> dict[int, ir.Value]:
    """s = x + skip + bias, then as GroupNorm."""
    x, gamma, beta, skip, bias = [*node.inputs, None][:5]
    assert x is not None
    if len(dimensions(skip) or ()) == 2:
        skip = emit(node, "Unsqueeze", [skip, _numbers(node, 1, 2)], suffix="_skip")
    total = emit(node, "Add", [x, skip], suffix="_sum")
    total = emit(node, "Add", [total, bias], suffix="_sum_bias") if bias is not None else total
    total.type = x.type
    return {0: _normalized(node, total, gamma, beta), 1: total} if len(node.outputs) > 1 else {0: _normalized(node, total, gamma, beta)}


def _normalized(node: ir.Node, x: ir.Value, gamma: ir.Value | None, beta: ir.Value | None) -> ir.Value:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta over groups of channels, in float32, and SiLU of it where it is asked for."""
    assert gamma is not None
    turned = integer(node, "channels_last", 1) == 1
    value = _cast(node, x, ir.DataType.FLOAT, "_wide")
    value = emit(node, "Transpose", [value], {"perm": NHWC_TO_NCHW}, "_channels_first") if turned else value
    grouped = emit(node, "Reshape", [value, _numbers(node, 0, integer(node, "groups", 1), -1)], suffix="_groups")
    normalized = standardized(node, grouped, range(2, 3), node.attributes.get_float("epsilon", 1e-5))
    restored = emit(node, "Reshape", [normalized, emit(node, "Shape", [value], suffix="_sizes")], suffix="_restored")
    gamma = _cast(node, gamma, ir.DataType.FLOAT, "_gamma")
    y = scaled(node, restored, gamma, beta and _cast(node, beta, ir.DataType.FLOAT, "_beta"), trailing=2)
    if integer(node, "activation", 0):
        y = emit(node, "Mul", [y, emit(node, "Sigmoid", [y], suffix="_sigmoid")], suffix="_silu")
    y = emit(node, "Transpose", [y], {"perm": NCHW_TO_NHWC}, "_channels_last") if turned else y
    assert x.dtype is not None
    return emit(node, "Cast", [y], {"to": x.dtype.value}, "_narrow")


def _bias_split_gelu(node: ir.Node) -> dict[int, ir.Value]:
    """left * gelu(right) of the halves of x + bias; gelu(x) = x * (erf(x / sqrt 2) + 1) / 2."""
    biased = emit(node, "Add", list(node.inputs), suffix="_biased")
    width = (dimensions(node.inputs[1]) or (0,))[0]
    assert isinstance(width, int)
    left, right = (
        emit(node, "Slice", [biased, _numbers(node, start), _numbers(node, start + width // 2), _numbers(node, -1)], suffix=suffix)
        for start, suffix in ((0, "_left"), (width // 2, "_right"))
    )
    error = emit(node, "Erf", [emit(node, "Mul", [right, _number(node, 0.5**0.5)], suffix="_scaled")], suffix="_erf")
    distribution = emit(node, "Mul", [emit(node, "Add", [error, _number(node, 1)], suffix="_shifted"), _number(node, 0.5)], suffix="_half")
    return {0: emit(node, "Mul", [left, emit(node, "Mul", [right, distribution], suffix="_gelu")], suffix="_product")}


def _bias_add(node: ir.Node) -> dict[int, ir.Value]:
    x, bias, skip = node.inputs
    return {0: emit(node, "Add", [emit(node, "Add", [x, bias], suffix="_biased"), skip], suffix="_sum")}


def _nhwc_conv(node: ir.Node) -> dict[int, ir.Value]:
    """Conv, of x [batch, height, width, channels] and a weight [channels out, height, width, channels in]."""
    x, weight, *bias = node.inputs
    picture = emit(node, "Transpose", [x], {"perm": NHWC_TO_NCHW}, "_channels_first")
    kernel = emit(node, "Transpose", [weight], {"perm": NHWC_TO_NCHW}, "_kernel")
    result = emit(node, "Conv", [picture, kernel, *bias], dict(node.attributes), "_conv")
    return {0: emit(node, "Transpose", [result], {"perm": NCHW_TO_NHWC}, "_channels_last")}


def _multi_head_attention(node: ir.Node) -> dict[int, ir.Value]:
    """softmax(scale q k' + attention_bias) v per head; the query may hold q, k and v as [batch, tokens, heads, 3, dim], the key k and v."""
    query, key, value, bias, padding, mask = [*node.inputs, *[None] * 6][:6]
    heads = integer(node, "num_heads", 1)
    if bias is not None or padding is not None or len(node.inputs) > 6 or len(node.outputs) > 1:
        raise GraphError(f"'{node.name}' is a MultiHeadAttention with a bias, a padding mask or a past, which has no definition here.")
    if key is None:
        apart = [_part(node, query, index, f"_{name}") for index, name in enumerate("qkv")]
    elif value is None:
        apart = [_with_heads(node, query, heads, "_q"), *(_part(node, key, index, f"_{name}") for index, name in enumerate("kv"))]
    else:
        apart = [_with_heads(node, each, heads, f"_{name}") for each, name in ((query, "q"), (key, "k"), (value, "v"))]
    q, k, v = (
        emit(node, "Transpose", [each], {"perm": perm}, f"_{name}_heads_first")
        for each, perm, name in zip(apart, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), "qkv", strict=True)
    )
    # as the CPU provider does it, the queries are scaled and not the scores, of which there are more
    width = (dimensions(node.outputs[0]) or (None,))[-1]
    scale = node.attributes.get_float("scale", 0.0) or (1 / (width / heads) ** 0.5 if isinstance(width, int) else 0.0)
    if not scale:
        raise GraphError(f"'{node.name}' has no scale, and the size of its heads is not known.")
    scores = emit(node, "MatMul", [emit(node, "Mul", [q, _number(node, scale)], suffix="_scaled"), k], suffix="_scores")
    scores = emit(node, "Add", [scores, mask], suffix="_masked") if mask is not None else scores
    weights = emit(node, "Softmax", [scores], {"axis": -1}, "_weights")
    tokens = emit(node, "Transpose", [emit(node, "MatMul", [weights, v], suffix="_values")], {"perm": [0, 2, 1, 3]}, "_tokens")
    return {0: emit(node, "Reshape", [tokens, _numbers(node, 0, 0, -1)], suffix="_joined")}


def _part(node: ir.Node, packed: ir.Value | None, index: int, suffix: str) -> ir.Value:
    """[batch, tokens, heads, dim] at `index` of the last axis but one."""
    return emit(node, "Gather", [packed, emit_constant(node, np.array(index, np.int64))], {"axis": 3}, suffix)


def _with_heads(node: ir.Node, value: ir.Value | None, heads: int, suffix: str) -> ir.Value:
    return emit(node, "Reshape", [value, _numbers(node, 0, 0, heads, -1)], suffix=suffix)


def _skip_layer_norm(node: ir.Node) -> dict[int, ir.Value]:
    """LayerNormalization of s = x + skip + bias; s is the fourth output."""
    x, skip, gamma, beta, bias = [*node.inputs, None][:5]
    total = emit(node, "Add", [x, bias], suffix="_biased") if bias is not None else x
    total = emit(node, "Add", [total, skip], suffix="_sum")
    attributes = {"axis": -1, "epsilon": node.attributes.get_float("epsilon", 1e-12)}
    return {0: emit(node, "LayerNormalization", [total, gamma, beta], attributes, "_normalized"), 3: total}


def _cast(node: ir.Node, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
    return emit(node, "Cast", [value], {"to": dtype.value}, suffix) if value.dtype != dtype else value


def _numbers(node: ir.Node, *numbers: int) -> ir.Value:
    return emit_constant(node, np.array(numbers, np.int64))


def _number(node: ir.Node, number: float) -> ir.Value:
    """A scalar of the type of the node's first input."""
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    return emit_constant(node, np.array(number, (dtype or ir.DataType.FLOAT).numpy()))


DEFINITIONS: dict[str, Callable[[ir.Node], dict[int, ir.Value]]] = {
    "GroupNorm": _group_norm,
    "SkipGroupNorm": _skip_group_norm,
    "BiasSplitGelu": _bias_split_gelu,
    "BiasAdd": _bias_add,
    "NhwcConv": _nhwc_conv,
    "MultiHeadAttention": _multi_head_attention,
    "MatMulNBits": matmul_nbits,
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "SkipLayerNormalization": _skip_layer_norm,
}
EXPAND_CONTRIB = Pass("expand com.microsoft", expand)
