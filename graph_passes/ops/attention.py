"""softmax(scale * q k' + mask) v, with its heads apart -> handheld.FlashAttention(q, k, v, mask) or handheld.PartialSoftmaxAttention(...).

Scaled dot-product attention: Vaswani et al., "Attention Is All You Need", 2017, equation 1. Exporters make each head a matrix of its own,
[batch, heads, tokens, dim]; the custom ops take and give [batch, tokens, heads * dim], so the reshapes and transposes around go too.
The two are one function, and their kernels differ: the first never writes the scores (Dao et al., "FlashAttention", 2022), the second
writes them and fuses their softmax into the product with the values (Chen et al., "Speed Is All You Need", 2023, section 3.2).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset14, script
from onnxscript.values import Opset

from graph_passes.folded_heads import after_unfolding, before_folding
from graph_passes.rule import Refused, adopt, emit, emit_constant, fusion, replace
from graph_passes.sizes import Element, elements, reshape_target, size_elements
from graph_passes.step import Pass
from graph_passes.values import add_initializer, constant, dimensions, integer, integers, is_standard, only_user, operands, producer

handheld = Opset("handheld", 1)
op: Any = opset14  # a body is ONNX spelled as Python: its types are not Python's

KERNEL_TYPES = (ir.DataType.FLOAT,)
TOKENS_FIRST = (0, 2, 1, 3)  # [batch, tokens, heads, dim] to [batch, heads, tokens, dim] and back
DIM_FIRST = (0, 2, 3, 1)  # [batch, tokens, heads, dim] to [batch, heads, dim, tokens]
OPERANDS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of products, by the precision of a package
NO_MASK = "no_mask"  # the initializer that all attentions without a mask share


# A softmax of nothing but -inf is not a number, so the mask of such a row is left out and its result multiplied by 0: what that costs
# depends on the size of the mask, not on that of the scores. -3.4028235e38 is the lowest of the finite numbers.
@script(handheld, default_opset=op)
def FlashAttention(q, k, v, mask, heads: int, scale: float, operands: str = "float32"):  # type: ignore[no-untyped-def]
    """softmax(scale * q k' + mask) v for every head; a row that the mask closes with -inf for all keys is 0.

    A kernel may round the operands of both products to `operands`, bfloat16 or float16; the body, which is slow anyway, does not.
    q: float32 [batch, queries, heads * dim]; k, v: float32 [batch, keys, heads * dim]; mask: float32 [batch, heads, queries, keys], each of
    these sizes or 1: a single 0 is no mask. Returns the shape of q.
    """
    last = op.Constant(value_ints=[-1])
    zero = op.Constant(value_float=0.0)
    keep = op.Constant(value_ints=[0, 0])
    apart = op.Concat(keep, op.Reshape(op.Constant(value_int=heads), op.Constant(value_ints=[1])), last, axis=0)
    queries = op.Transpose(op.Reshape(q, apart), perm=[0, 2, 1, 3])
    keys = op.Transpose(op.Reshape(k, apart), perm=[0, 2, 3, 1])
    values = op.Transpose(op.Reshape(v, apart), perm=[0, 2, 1, 3])
    counts = op.Cast(op.Not(op.Less(mask, op.Constant(value_float=-3.4028235e38))), to=1)
    is_open = op.Greater(op.ReduceSum(counts, last, keepdims=1), zero)  # [batch, heads, queries, 1], or 1
    scores = op.MatMul(op.Mul(queries, op.Constant(value_float=scale)), keys)
    weights = op.Softmax(op.Add(scores, op.Where(is_open, mask, zero)), axis=-1)
    result = op.Mul(op.MatMul(weights, values), op.Cast(is_open, to=1))
    return op.Reshape(op.Transpose(result, perm=[0, 2, 1, 3]), op.Shape(q))


@script(handheld, default_opset=op)
def PartialSoftmaxAttention(q, k, v, mask, heads: int, scale: float):  # type: ignore[no-untyped-def]
    """The function of FlashAttention: its kernel differs."""
    return FlashAttention(q, k, v, mask, heads=heads, scale=scale)


@dataclass(frozen=True)
class Site:
    """An attention as an exporter wrote it: its operands as [batch, tokens, heads, dim], and the node whose output it is in that form."""

    last: ir.Node
    q: ir.Value
    k: ir.Value
    v: ir.Value
    mask: ir.Value | None
    heads: int
    dim: int
    scale: float


def find_site(softmax: ir.Node, types: tuple[ir.DataType, ...] = KERNEL_TYPES) -> Site:
    """The attention around a softmax. Raises Refused with the reason where it is none, or not one for kernels of these types."""
    weights = _weights(softmax)
    product = only_user(weights, "MatMul")
    if product is None or product.inputs[0] is not weights:
        raise Refused("its output is not read by one product with values alone")
    result = product.outputs[0]
    folded = _is_folded(result)
    apart = after_unfolding(result) if folded else result
    last = only_user(apart, "Transpose") if apart is not None else None
    if last is None or _permutation(last) != TOKENS_FIRST:
        raise Refused("the product with the values is not read by one transpose to [batch, tokens, heads, dim] alone")
    scores, mask, scale = _scores(softmax)
    if mask is not None and folded:
        raise Refused("the mask is added to heads that are folded into the batch")
    if integer(softmax, "axis", -1) not in (-1, 2 if folded else 3):
        raise Refused("it is not over the last axis, that of the keys")
    q, q_scale = _tokens_first(scores.inputs[0], TOKENS_FIRST, "queries")
    k, k_scale = _tokens_first(scores.inputs[1], DIM_FIRST, "keys")
    v, v_scale = _tokens_first(product.inputs[1], TOKENS_FIRST, "values")
    if v_scale != 1:
        raise Refused("the values are scaled, and the kernel scales scores alone")
    heads, dim = _sizes(q, "queries")
    for value, name in ((k, "keys"), (v, "values")):
        if _sizes(value, name) != (heads, dim):
            raise Refused(f"the {name} have other heads than the queries")
    if (dimensions(last.inputs[0]) or ())[1:2] != (heads,):
        raise Refused("its result has other heads than the queries")
    if q.dtype not in types:
        raise Refused(f"the queries are {q.dtype or 'of unknown type'}, and the kernel takes {' and '.join(each.name for each in types)}")
    return Site(last, q, k, v, mask, heads, dim, scale * q_scale * k_scale)


def _weights(softmax: ir.Node) -> ir.Value:
    """The weights of the values: the softmax, or that with 0 for NaN, as exporters guard rows that are masked throughout."""
    weights = softmax.outputs[0]
    readers = [use.node for use in weights.uses()]
    test = next((each for each in readers if is_standard(each, "IsNaN")), None)
    guard = test and only_user(test.outputs[0], "Where")
    if guard is None or weights.is_graph_output() or len(readers) != 2 or guard.inputs[2] is not weights:
        return weights
    zero = constant(guard.inputs[1])
    return guard.outputs[0] if zero is not None and zero.size == 1 and float(zero.reshape(())) == 0 else weights


def _scores(softmax: ir.Node) -> tuple[ir.Node, ir.Value | None, float]:
    """The product that makes the scores, the mask that is added to them, and the constant that they are multiplied by before that."""
    (value,) = operands(softmax)
    mask = None
    added = producer(value, "Add")
    if added is not None:
        first, second = operands(added)
        # the scores are the operand that is a product
        value, mask = (second, first) if _is_product(second) else (first, second)
        shape = dimensions(mask)
        if shape is None or len(shape) > 4:
            raise Refused("the mask is not known to have four axes or less")
        if not _is_alone(added):
            raise Refused("its scores have other readers")
    value, scale = _unscaled(value)
    product = producer(value, "MatMul")
    if product is None:
        raise Refused("its input is not a product of queries and keys, scaled by a constant and with a mask added")
    if not _is_alone(product):
        raise Refused("its scores have other readers")
    return product, None if mask is not None and _is_no_mask(mask, product) else mask, scale


def _is_no_mask(mask: ir.Value, product: ir.Node) -> bool:
    """Whether the mask is zeros that broadcast to the scores: torch.baddbmm adds 0 times an empty tensor for diffusers' AttnProcessor."""
    sizes = _sizes_of_zeros(mask)
    queries, keys = (size_elements(value) for value in operands(product))
    if sizes is None or queries is None or keys is None or len(sizes) > len(queries):
        return False
    scores = (*queries[:-1], keys[-1])
    return all(size in (1, large) for size, large in zip(sizes, scores[len(scores) - len(sizes) :], strict=True))


def _sizes_of_zeros(value: ir.Value) -> tuple[Element, ...] | None:
    """The sizes of a constant that is 0 throughout, or of zeros that the graph makes, and may multiply; None for any other value."""
    array = constant(value)
    if array is not None:
        return None if array.any() else array.shape
    times = producer(value, "Mul")
    if times is not None and (factor := constant(operands(times)[1])) is not None and factor.size == 1 and np.isfinite(factor).all():
        value = operands(times)[0]
    filled = producer(value, "ConstantOfShape")
    if filled is None or ("value" in filled.attributes and filled.attributes["value"].as_tensor().numpy().any()):
        return None
    return elements(filled.inputs[0])


def _is_product(value: ir.Value) -> bool:
    return producer(_unscaled(value)[0], "MatMul") is not None


def _is_alone(node: ir.Node) -> bool:
    return len(node.outputs[0].uses()) == 1 and not node.outputs[0].is_graph_output()


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """The value that is multiplied or divided by constants of one element to make `value`, and their product."""
    scale = 1.0
    while (node := producer(value, "Mul", "Div")) is not None:
        first, second = operands(node)
        number = constant(second)
        if number is None and node.op_type == "Mul":
            first, number = second, constant(first)
        if number is None or number.size != 1 or number.ndim > len(dimensions(first) or ()):
            break
        factor = float(number.reshape(()))
        if factor == 0:
            break
        value, scale = first, scale * (factor if node.op_type == "Mul" else 1 / factor)
    return value, scale


def _tokens_first(value: ir.Value | None, permutation: tuple[int, ...], name: str) -> tuple[ir.Value, float]:
    """The value as it was before the heads were put in front of the tokens, and the constant that it is multiplied by since."""
    assert value is not None
    value, scale = _unscaled(value)
    if _is_folded(value):
        value, permutation = _unfolded(value, permutation), TOKENS_FIRST
    transpose = producer(value, "Transpose")
    if transpose is None or _permutation(transpose) != permutation:
        raise Refused(f"the {name} are not known to be a transpose of [batch, tokens, heads, dim]")
    return operands(transpose)[0], scale


def _is_folded(value: ir.Value) -> bool:
    """Whether the value has three axes, of which the first is then that of batch and heads."""
    return len(dimensions(value) or ()) == 3


def _unfolded(value: ir.Value, permutation: tuple[int, ...]) -> ir.Value | None:
    """[batch, heads, tokens, dim] that was folded into `value`, and turned too where `permutation` is that of the keys."""
    if permutation == DIM_FIRST:
        turned = producer(value, "Transpose")
        if turned is None or _permutation(turned) != (0, 2, 1):
            return None
        value = operands(turned)[0]
    return before_folding(value)


def _permutation(transpose: ir.Node) -> tuple[int, ...]:
    return tuple(integers(transpose, "perm") or ())


def _sizes(value: ir.Value, name: str) -> tuple[int, int]:
    """Number of heads and elements of each, of [batch, tokens, heads, dim]."""
    shape = dimensions(value) or ()
    heads, dim = shape[2:4] if len(shape) == 4 else (None, None)
    if not isinstance(heads, int) or not isinstance(dim, int):
        raise Refused(f"the number of heads of the {name} and their size are not known")
    return heads, dim


def is_candidate(node: ir.Node) -> bool:
    return is_standard(node, "Softmax")


def _fuse(site: Site, softmax: ir.Node, op_type: str, precision: str = "fp32") -> None:
    last = site.last
    joined = [join_heads(value, site, last) for value in (site.q, site.k, site.v)]
    attributes: dict[str, int | float | str] = {"heads": site.heads, "scale": site.scale}
    if precision != "fp32":
        attributes["operands"] = OPERANDS[precision]
    node = ir.node(op_type, [*joined, _mask(site.mask, last)], attributes, domain=handheld.domain, name=softmax.name)
    assert last.graph is not None
    last.graph.insert_before(last, node)
    adopt(node.outputs[0], joined[0])
    put_result(site, node.outputs[0])


def put_result(site: Site, result: ir.Value) -> None:
    """Puts [batch, tokens, heads * dim] in the place of what the exporter wrote, and of the Reshape that joins its heads."""
    last = site.last
    restored = only_user(last.outputs[0], "Reshape")
    if restored is not None and _joins(restored, site):
        replace(restored, result)
    else:
        replace(last, emit(last, "Reshape", [result, emit_constant(last, np.array([0, 0, site.heads, site.dim], np.int64))]))


def join_heads(value: ir.Value, site: Site, before: ir.Node) -> ir.Value:
    """[batch, tokens, heads, dim] as [batch, tokens, heads * dim]: what it was split from, if that is known, or a Reshape."""
    split = producer(value, "Reshape")
    if split is not None and _splits(split, site):
        return operands(split)[0]
    return emit(before, "Reshape", [value, emit_constant(before, np.array([0, 0, site.heads * site.dim], np.int64))], suffix="_joined")


def _splits(reshape: ir.Node, site: Site) -> bool:
    """Whether the Reshape makes [batch, tokens, heads, dim] of [batch, tokens, heads * dim] and leaves batch and tokens as they are."""
    shape = dimensions(reshape.inputs[0]) or ()
    return len(shape) == 3 and shape[2] == site.heads * site.dim and _keeps_tokens(reshape)


def _joins(reshape: ir.Node, site: Site) -> bool:
    """Whether the Reshape makes [batch, tokens, heads * dim] of [batch, tokens, heads, dim]."""
    shape = dimensions(reshape.outputs[0]) or ()
    return len(shape) == 3 and shape[2] == site.heads * site.dim and _keeps_tokens(reshape)


def _keeps_tokens(reshape: ir.Node) -> bool:
    """Whether the first size or the second stays. Then the other does too, where the rest of the shape is as large as it was."""
    before, after = size_elements(reshape.inputs[0]), reshape_target(reshape)
    return before is not None and after is not None and any(first == second for first, second in zip(before[:2], after[:2], strict=True))


def _mask(mask: ir.Value | None, before: ir.Node) -> ir.Value:
    """The mask with four axes; a single 0 where there is none."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    if mask is None:
        none = graph.initializers.get(NO_MASK)
        return none if none is not None else add_initializer(graph, ir.tensor(np.zeros((1, 1, 1, 1), np.float32)), NO_MASK)
    return with_four_axes(mask, before)


def with_four_axes(mask: ir.Value, before: ir.Node) -> ir.Value:
    """[batch, heads, queries, keys] of a mask that leaves the first of them out."""
    rank = len(dimensions(mask) or ())
    if rank == 4:
        return mask
    return emit(before, "Unsqueeze", [mask, emit_constant(before, np.arange(4 - rank))], suffix="_mask")


def fuse_flash_attention(precision: str) -> Pass:
    """The pass that makes one node of every attention, whose products have operands of that precision, a key of OPERANDS."""
    return fusion("fuse flash attention", is_candidate, find_site, functools.partial(_fuse, op_type="FlashAttention", precision=precision))


FUSE_FLASH_ATTENTION = fuse_flash_attention("fp32")
FUSE_PARTIAL_SOFTMAX_ATTENTION = fusion("fuse partial softmax attention", is_candidate, find_site,
                                        functools.partial(_fuse, op_type="PartialSoftmaxAttention"))
