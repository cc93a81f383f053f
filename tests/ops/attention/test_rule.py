"""MatMul, Softmax, MatMul in a graph -> FlashAttention and PartialSoftmaxAttention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graph_passes.ops.attention import FUSE_FLASH_ATTENTION, FUSE_PARTIAL_SOFTMAX_ATTENTION
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.pipelines import PORTABLE
from graph_passes.step import run

from ...architectures import Traced
from ..harness import UNIT, before_and_after, copy, hold_against_torch
from .reference import OPS

ATTENTION = """
    q4 = Reshape(q, apart)        qh = Transpose<perm: ints = [0, 2, 1, 3]>(q4)
    k4 = Reshape(k, apart)        kh = Transpose<perm: ints = [0, 2, 3, 1]>(k4)
    v4 = Reshape(v, apart)        vh = Transpose<perm: ints = [0, 2, 1, 3]>(v4)
    product = MatMul(qh, kh)      scores = Mul(product, scale)
    weights = Softmax<axis: int = -1>(scores)
    yh = MatMul(weights, vh)      y4 = Transpose<perm: ints = [0, 2, 1, 3]>(yh)
    y = Reshape(y4, together)
"""
CONSTANTS = {
    "apart": "int64[4] apart = {0, 0, 2, 3}",
    "together": "int64[3] together = {0, 0, 6}",
    "scale": "float scale = {0.5}",
    "half": "float half = {0.5}",
    "two": "float[1] two = {2}",
    "zero": "float zero = {0}",
    "nothing": "float[1, 1] nothing = {0}",
    "heads": "int64[1] heads = {2}",
    "one": "int64[1] one = {1}",
    "dim": "int64[1] dim = {3}",
}
TOKENS = {"B": 2, "Q": 5, "K": 7}


def graph(body: str, inputs: str = "", outputs: str = "float[B, Q, 6] y", dtype: str = "float", **constants: str) -> ir.Model:
    """A model in ONNX's text form, with CONSTANTS where `constants` does not say otherwise."""
    used = ", ".join(text for name, text in {**CONSTANTS, **constants}.items() if name in body)
    ports = f"{dtype}[B, Q, 6] q, {dtype}[B, K, 6] k, {dtype}[B, K, 6] v" + (inputs and f", {inputs}")
    text = f'<ir_version: 8, opset_import: ["" : 20]> g ({ports}) => ({outputs}) <{used}> {{ {body} }}'
    model = ir.from_onnx_text(text.replace("float[", f"{dtype}["))
    run(model, (LIFT_CONSTANTS, INFER_SHAPES))
    return model


def feed(model: ir.Model) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(11)
    ports = {
        str(value.name): [size if isinstance(size, int) else TOKENS[size.value] for size in value.shape or ()]
        for value in model.graph.inputs
    }
    feeds = {name: generator.normal(0, 1, shape).astype(np.float32) for name, shape in ports.items()}
    if "mask" in feeds:
        feeds["mask"][..., ::3] = -np.inf
    return feeds


def fused(model: ir.Model, partial: bool = False) -> list[str]:
    """Fuses, holds that the graph computes what it did, and returns the types of its nodes."""
    before = copy(model)
    (step,) = run(model, (FUSE_PARTIAL_SOFTMAX_ATTENTION if partial else FUSE_FLASH_ATTENTION,))
    assert (step.applied, step.refused) == (1, ())
    kinds = [each.op_type for each in model.graph]
    for expected, got in before_and_after(before, model, feed(before)):
        np.testing.assert_allclose(got, expected, rtol=0, atol=16 * UNIT * 4)  # both are right to some units of the largest value, 4
    return kinds


SCALINGS = {
    "scores": ATTENTION,
    "scores, the other way": ATTENTION.replace("Mul(product, scale)", "Mul(scale, product)"),
    "scores, divided": ATTENTION.replace("Mul(product, scale)", "Div(product, two)"),
    "queries and keys": ATTENTION.replace("qh =", "qs =").replace("kh =", "ks =")
    .replace("product = MatMul(qh, kh)      scores = Mul(product, scale)", "qh = Mul(qs, scale) kh = Div(ks, two) scores = MatMul(qh, kh)"),
    "queries": ATTENTION.replace("qh =", "qs =")
    .replace("product = MatMul(qh, kh)      scores = Mul(product, scale)", "qh = Mul(qs, half) scores = MatMul(qh, kh)"),
}  # fmt: skip


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("body", SCALINGS.values(), ids=SCALINGS)
def test_the_rule_takes_attention_and_its_scale(body: str, partial: bool) -> None:
    model = graph(body)
    assert fused(model, partial) == [OPS[partial]]
    made = model.graph[0]
    assert [value.name for value in made.inputs if value is not None] == ["q", "k", "v", "no_mask"]
    assert (made.domain, made.attributes["heads"].as_int()) == ("handheld", 2)
    assert made.attributes["scale"].as_float() == (0.25 if "ks" in body else 0.5)


MASKED = ATTENTION.replace("scores = Mul", "scaled = Mul").replace("weights =", "scores = Add(scaled, mask) weights =")
GUARDED = MASKED.replace("weights =", "soft =").replace("yh =", "nan = IsNaN(soft) weights = Where(nan, zero, soft) yh =")


@pytest.mark.parametrize(
    ("body", "mask", "kinds"),
    [
        (MASKED, "float[B, 1, Q, K] mask", []),
        (MASKED.replace("Add(scaled, mask)", "Add(mask, scaled)"), "float[1, 2, 1, K] mask", []),
        (MASKED, "float[Q, K] mask", ["Unsqueeze"]),
        (GUARDED, "float[B, 1, Q, K] mask", []),
    ],
    ids=["mask", "operands the other way", "of queries and keys alone", "guarded"],
)
def test_the_rule_takes_a_mask(body: str, mask: str, kinds: list[str]) -> None:
    assert fused(graph(body, mask)) == [*kinds, "FlashAttention"]


def test_a_split_that_is_not_known_to_keep_the_batch_stays() -> None:
    """Graphs of the old exporter: the attention is that of the four axes, whatever they came from."""
    body = ATTENTION.replace("Reshape(q, apart)", "Reshape(q, sizes)")
    model = graph(body, sizes="int64[4] sizes = {-1, 5, 2, 3}")
    assert fused(model) == ["Reshape", "Reshape", "FlashAttention"]
    model = graph(ATTENTION.replace("y = Reshape(y4, together)", "y = Neg(y4)"), outputs="float[B, Q, 2, 3] y")
    assert fused(model) == ["FlashAttention", "Reshape", "Neg"]


# as diffusers' AttnProcessor has it: batch and heads are one axis, and 0 times an empty tensor is added to the scores
FOLDED = """
    q4 = Reshape(q, apart)        qa = Transpose<perm: ints = [0, 2, 1, 3]>(q4)
    k4 = Reshape(k, apart)        ka = Transpose<perm: ints = [0, 2, 1, 3]>(k4)
    v4 = Reshape(v, apart)        va = Transpose<perm: ints = [0, 2, 1, 3]>(v4)
    batch = Shape<start: int = 0, end: int = 1>(q)
    queries = Shape<start: int = 1, end: int = 2>(q)
    keys = Shape<start: int = 1, end: int = 2>(k)
    matrices = Mul(batch, heads)
    of_queries = Concat<axis: int = 0>(matrices, queries, dim)
    of_keys = Concat<axis: int = 0>(matrices, keys, dim)
    qh = Reshape(qa, of_queries)  kh = Reshape(ka, of_keys)    vh = Reshape(va, of_keys)
    kt = Transpose<perm: ints = [0, 2, 1]>(kh)
    product = MatMul(qh, kt)      scaled = Mul(product, scale)
    count = Shape<start: int = 0, end: int = 1>(qh)
    square = Concat<axis: int = 0>(count, queries, keys)
    empty = ConstantOfShape(square)
    none = Mul(empty, zero)       scores = Add(scaled, none)
    weights = Softmax<axis: int = -1>(scores)
    yh = MatMul(weights, vh)
    made = Shape<start: int = 0, end: int = 1>(yh)
    images = Div(made, heads)     unfold = Concat<axis: int = 0>(images, heads, queries, dim)
    ya = Reshape(yh, unfold)      y4 = Transpose<perm: ints = [0, 2, 1, 3]>(ya)
    y = Reshape(y4, together)
"""
ADDED = "none = Mul(empty, zero)       scores = Add(scaled, none)"
ONE_HEAD = FOLDED.replace("(images, heads,", "(made, one,").replace("y = Reshape(y4, together)", "y = Neg(y4)")


@pytest.mark.parametrize(
    "body",
    [
        FOLDED,
        FOLDED.replace(ADDED, "scores = Add(empty, scaled)"),
        FOLDED.replace(ADDED, "scores = Add(scaled, nothing)"),
        FOLDED.replace(ADDED, "scores = Mul(scaled, two)"),
    ],
    ids=["zero times an empty tensor", "an empty tensor", "a constant", "nothing"],
)
def test_the_rule_takes_heads_that_are_folded_into_the_batch(body: str) -> None:
    assert fused(graph(body)) == ["FlashAttention"]


UNSCALED = ATTENTION.replace("product = MatMul(qh, kh)      scores = Mul(product, scale)", "scores = MatMul(qh, kh)")
FOLDED_MASK = "the mask is added to heads that are folded into the batch"
ALONE = "the product with the values is not read by one transpose to [batch, tokens, heads, dim] alone"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: graph(ATTENTION + "w = Neg(weights)", outputs="float[B, Q, 6] y, float[B, 2, Q, K] w"),
         "its output is not read by one product with values alone"),
        (lambda: graph(ATTENTION + "w = Neg(yh)", outputs="float[B, Q, 6] y, float[B, 2, Q, 3] w"), ALONE),
        (lambda: graph(ATTENTION.replace("y4 = Transpose<perm: ints = [0, 2, 1, 3]>(yh)", "y4 = Transpose<perm: ints = [2, 0, 1, 3]>(yh)"),
                       outputs="float[D, E, 6] y"), ALONE),
        (lambda: graph(ATTENTION + "w = Neg(product)", outputs="float[B, Q, 6] y, float[B, 2, Q, K] w"), "its scores have other readers"),
        (lambda: graph(MASKED + "w = Neg(scores)", "float[Q, K] mask", outputs="float[B, Q, 6] y, float[B, 2, Q, K] w"),
         "its scores have other readers"),
        (lambda: graph(ATTENTION.replace("axis: int = -1", "axis: int = 2")), "it is not over the last axis, that of the keys"),
        (lambda: graph(ATTENTION.replace("scores = Mul(product, scale)", "scores = Tanh(product)")),
         "its input is not a product of queries and keys, scaled by a constant and with a mask added"),
        (lambda: graph(ATTENTION.replace("Mul(product, scale)", "Mul(product, mask)"), "float mask"),
         "its input is not a product of queries and keys, scaled by a constant and with a mask added"),
        (lambda: graph(MASKED, "float[1, B, 2, Q, K] mask", outputs="float[B, Q, 6] y"), "the mask is not known to have four axes or less"),
        (lambda: graph(ATTENTION.replace("kh = Transpose<perm: ints = [0, 2, 3, 1]>(k4)", "kh = Reshape(k, other)"),
                       other="int64[4] other = {0, 2, 3, -1}"), "the keys are not known to be a transpose of [batch, tokens, heads, dim]"),
        (lambda: graph(ATTENTION.replace("yh = MatMul(weights, vh)", "vs = Mul(vh, scale) yh = MatMul(weights, vs)")),
         "the values are scaled, and the kernel scales scores alone"),
        (lambda: graph(UNSCALED.replace("(v, apart)", "(v, wide)").replace("Reshape(y4, together)", "Neg(y4)"),
                       wide="int64[4] wide = {0, -1, 2, 1}", outputs="float[B, Q, 2, 1] y"),
         "the values have other heads than the queries"),
        (lambda: graph(FOLDED.replace("scores = Add(scaled, none)", "scores = Add(scaled, mask)"), "float[A, Q, K] mask"), FOLDED_MASK),
        (lambda: graph(FOLDED.replace("(count, queries, keys)", "(queries, queries, keys)")), FOLDED_MASK),  # may be more than the scores
        (lambda: graph(FOLDED.replace("(empty, zero)", "(empty, infinite)"), infinite="float infinite = {inf}"), FOLDED_MASK),
        (lambda: graph(FOLDED.replace("(empty, zero)", "(other, zero)"), "float[A, Q, K] other"), FOLDED_MASK),
        (lambda: graph(FOLDED.replace(ADDED, "scores = Mul(scaled, two)")
                       .replace("Transpose<perm: ints = [0, 2, 1]>(kh)", "Reshape(kh, turned)"), turned="int64[3] turned = {4, 3, 7}"),
         "the keys are not known to be a transpose of [batch, tokens, heads, dim]"),
        (lambda: graph(FOLDED + "w = Neg(yh)", outputs="float[B, Q, 6] y, float[A, Q, 3] w"), ALONE),
        (lambda: graph(ONE_HEAD, outputs="float[A, Q, 1, 3] y"), "its result has other heads than the queries"),
        (lambda: graph(UNSCALED, dtype="float16"), "the queries are FLOAT16, and the kernel takes FLOAT"),
    ],
)  # fmt: skip
def test_a_site_that_is_left_has_its_reason(model: Callable[[], ir.Model], reason: str) -> None:
    made = model()
    (softmax,) = (each for each in made.graph if each.op_type == "Softmax")
    (step,) = run(made, (FUSE_FLASH_ATTENTION,))
    assert step.applied == 0
    assert step.refused == (f"Softmax '{softmax.name}': {reason}",)


@pytest.mark.parametrize(
    ("architecture", "exporter", "opset", "sites"),
    [
        ("unet", "dynamic", 20, 32),
        ("unet", "torchscript", 14, 32),
        ("vae_decoder", "dynamic", 20, 1),
        ("vae_decoder", "torchscript", 17, 1),
        ("vae_encoder", "static", 20, 1),
        ("vae_attention", "torchscript", 14, 1),
        ("transformer-baddbmm", "torchscript", 14, 2),
        ("transformer-baddbmm", "static", 20, 2),
        ("transformer-einsum", "torchscript", 17, 2),
        ("vit-l", "dynamic", 20, 12),
        ("vit-l", "torchscript", 17, 12),
    ],
)
def test_every_site_of_a_real_export_is_fused(
    ops_library: Path, traced: Callable[..., Traced], architecture: str, exporter: str, opset: int, sites: int
) -> None:
    export = traced(architecture, exporter, opset)
    model = export.model()
    (*_, step) = run(model, (*PORTABLE, FUSE_FLASH_ATTENTION))
    assert step.refused == ()
    assert Counter(each.op_type for each in model.graph)["FlashAttention"] == sites
    hold_against_torch(model, export, ops_library)
