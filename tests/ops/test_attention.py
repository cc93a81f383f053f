"""FlashAttention and PartialSoftmaxAttention: the rule, the bodies and the kernels, against float64."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from onnx.reference import ReferenceEvaluator
from transformers import CLIPTextConfig, CLIPTextModel

from export.component import Component
from export.trace import trace
from graph_passes.ops.attention import FUSE_FLASH_ATTENTION, FUSE_PARTIAL_SOFTMAX_ATTENTION
from graph_passes.passes.attach_bodies import attach_bodies
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.pipelines import PORTABLE
from graph_passes.step import run

OPS = ("FlashAttention", "PartialSoftmaxAttention")
ISAS = ("portable", "avx2", "avx512", "avx512bf16", "neon")
UNIT = 2.0**-23
SHAPES = [  # batch, heads, queries, keys, dim
    (1, 1, 1, 1, 1),
    (2, 3, 1, 5, 1),
    (1, 2, 17, 9, 7),
    (2, 2, 50, 131, 8),
    (1, 8, 256, 77, 40),
    (1, 1, 200, 300, 96),
]
MASKS = ["none", "causal", "keys", "heads", "one"]


def node(op_type: str, q: tuple[Any, ...] | None, k: tuple[Any, ...] | None, mask: Any = (None,) * 4, opset: int = 20,
         dtype: int = onnx.TensorProto.FLOAT, **attributes: Any) -> onnx.ModelProto:  # fmt: skip
    """A model of one custom op with its body; strings in shapes are dynamic dimensions."""
    inputs = [onnx.helper.make_tensor_value_info(name, dtype, shape) for name, shape in (("q", q), ("k", k), ("v", k), ("mask", mask))]
    made = onnx.helper.make_node(op_type, ["q", "k", "v", "mask"], ["y"], domain="handheld", **attributes)
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("handheld", 1)]
    outputs = [onnx.helper.make_tensor_value_info("y", dtype, q)]
    model = ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph([made], "g", inputs, outputs), opset_imports=imports, ir_version=8))
    attach_bodies(model)
    return ir.to_proto(model)


def of_heads(op_type: str, heads: int, scale: float, **options: Any) -> onnx.ModelProto:
    return node(op_type, ("B", "Q", "C"), ("B", "K", "C"), heads=heads, scale=scale, **options)


def session(model: onnx.ModelProto | ir.Model, library: Path | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def operands(shape: tuple[int, int, int, int, int], mask: str) -> dict[str, np.ndarray]:
    batch, heads, queries, keys, dim = shape
    generator = np.random.default_rng(zlib.crc32(repr((shape, mask)).encode()))
    q, k, v = (generator.normal(0.2, 1, (batch, tokens, heads * dim)) for tokens in (queries, keys, keys))
    masks = {
        "none": np.zeros((1, 1, 1, 1)),
        "causal": np.triu(np.full((1, 1, queries, keys), -np.inf), 1),
        "keys": np.where(generator.random((batch, 1, 1, keys)) < 0.4, -np.inf, 0),  # of some images all, where there are few keys
        "heads": generator.normal(0, 3, (1, heads, queries, keys)),
        "one": np.full((1, 1, 1, 1), -np.inf),  # masks all
    }
    if mask == "heads":
        masks[mask][0, -1, queries // 2] = -np.inf  # a whole row
    return {name: array.astype(np.float32) for name, array in (("q", q), ("k", k), ("v", v), ("mask", masks[mask]))}


def oracle(heads: int, scale: float, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the error that runtime/ops/attention/attention.h allows a kernel."""
    q, k, v = (each.astype(np.float64).reshape(*each.shape[:2], heads, -1).transpose(0, 2, 1, 3) for each in (q, k, v))
    mask = mask.astype(np.float64)
    scores = scale * (q @ k.swapaxes(2, 3)) + mask
    most = scores.max(axis=3, keepdims=True)
    terms = np.exp(scores - np.where(np.isinf(most), 0, most))
    total = terms.sum(axis=3, keepdims=True)
    y = (terms @ v) / np.where(total == 0, 1, total)
    magnitudes = np.where(terms > 0, abs(scale) * (np.abs(q) @ np.abs(k).swapaxes(2, 3)) + np.abs(mask), 0)
    allowed = UNIT * np.abs(v).max(axis=(2, 3), keepdims=True) * (2 + magnitudes.max(axis=3, keepdims=True))
    return tuple(each.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1) for each in (y, np.broadcast_to(allowed, y.shape)))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_attention(op_type: str, shape: tuple[int, int, int, int, int], mask: str) -> None:
    feeds, scale = operands(shape, mask), shape[4] ** -0.5
    model = of_heads(op_type, shape[1], scale)
    expected, allowed = oracle(shape[1], scale, **feeds)
    for got in (ReferenceEvaluator(model).run(None, feeds)[0], session(model, None).run(None, feeds)[0]):
        assert (got.dtype, got.shape) == (np.float32, expected.shape)
        assert (np.abs(got - expected) <= 2 * allowed).all()  # it rounds each weight and divides it, as the kernel does not


@pytest.mark.parametrize("opset", [14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_valid_at_every_opset_and_infers_shapes(op_type: str, opset: int) -> None:
    feeds = operands((2, 2, 5, 7, 3), "heads")
    model = node(op_type, ("B", "Q", 6), ("B", "K", 6), (1, 2, "Q", "K"), opset, heads=2, scale=0.5)
    onnx.checker.check_model(model, full_check=True)
    expected, allowed = oracle(2, 0.5, **feeds)
    assert (np.abs(session(model, None).run(None, feeds)[0] - expected) <= 2 * allowed).all()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output[0].type.tensor_type.shape
    assert [size.dim_param or size.dim_value for size in inferred.dim] == ["B", "Q", 6]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op_type", OPS)
def test_every_kernel_is_attention(ops_library: Path, op_type: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDHELD_ISA", isa)
    try:
        session(of_heads(op_type, 1, 1.0), ops_library)
    except Exception as error:
        assert f"HANDHELD_ISA is '{isa}', and this machine has kernels for: portable" in str(error)  # noqa: PT017 - it may well be here
        return
    for shape in SHAPES:
        scale = shape[4] ** -0.5
        kernel = session(of_heads(op_type, shape[1], scale), ops_library)
        for mask in MASKS:
            feeds = operands(shape, mask)
            expected, allowed = oracle(shape[1], scale, **feeds)
            got = kernel.run(None, feeds)[0]
            assert got.shape == expected.shape
            assert (np.abs(got - expected) <= allowed).all()


@pytest.mark.parametrize("op_type", OPS)
def test_scores_beyond_the_range_of_exp(ops_library: Path, op_type: str) -> None:
    """In body and kernel alike the largest score takes all, and a row of the lowest of all numbers is the mean."""
    model = of_heads(op_type, 1, 1.0)
    q, v = np.full((1, 3, 2), 100, np.float32), np.arange(10, dtype=np.float32).reshape(1, 5, 2)
    k = np.array([-1e5, 2e4, -1e5, 1e5, 9e4], np.float32)[None, :, None].repeat(2, axis=2)
    lowest = np.full((1, 1, 1, 1), np.finfo(np.float32).min, np.float32)
    for library in (None, ops_library):
        run_one = session(model, library)
        (y,) = run_one.run(None, {"q": q, "k": k, "v": v, "mask": np.zeros((1, 1, 1, 1), np.float32)})
        np.testing.assert_array_equal(y, v[:, [3, 3, 3]])
        (y,) = run_one.run(None, {"q": q / 100, "k": k / 1e5, "v": v, "mask": lowest})
        np.testing.assert_allclose(y, v.mean(axis=1, keepdims=True).repeat(3, axis=1), rtol=4 * UNIT)


def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = of_heads("FlashAttention", 2, 0.5), operands((2, 2, 5, 7, 3), "keys")
    results = [session(model, library).run(None, feeds)[0] for library in (ops_library, None)]
    np.testing.assert_allclose(*results, rtol=0, atol=3 * oracle(2, 0.5, **feeds)[1].max())
    monkeypatch.setenv("HANDHELD_ISA", "none")  # refused where there is a kernel, and only there
    session(model, None)
    with pytest.raises(Exception, match="HANDHELD_ISA is 'none'"):
        session(model, ops_library)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"q": (1, 4, 7)}, r"the queries have shape \[1, 4, 7\], and must be \[batch, tokens, 2 heads \* dim\]"),
        ({"q": (4, 6)}, r"the queries have shape \[4, 6\], and must be \[batch, tokens, 2 heads \* dim\]"),
        ({"k": (2, 5, 6)}, r"the keys have shape \[2, 5, 6\], and the queries \[1, 4, 6\]: batch and channels must agree"),
        ({"k": (1, 5, 8)}, r"the keys have shape \[1, 5, 8\], and the queries \[1, 4, 6\]: batch and channels must agree"),
        ({"v": (1, 6, 6)}, r"the values have shape \[1, 6, 6\], and the keys \[1, 5, 6\]"),
        ({"mask": (1, 2, 4, 4)}, r"the mask has shape \[1, 2, 4, 4\], and must be \[1, 2, 4, 5\], or 1 on any of these axes"),
        ({"mask": (4, 5)}, r"the mask has shape \[4, 5\], and must be \[1, 2, 4, 5\], or 1 on any of these axes"),
    ],
)
def test_the_kernel_refuses_shapes_with_a_sentence(ops_library: Path, shapes: dict[str, tuple[int, ...]], sentence: str) -> None:
    model = node("FlashAttention", None, None, None, heads=2, scale=1.0)
    del model.functions[:]
    kernel = session(model, ops_library)
    good = {"q": (1, 4, 6), "k": (1, 5, 6), "v": (1, 5, 6), "mask": (1, 1, 4, 5)}
    with pytest.raises(Exception, match=f"FlashAttention: {sentence}"):
        kernel.run(None, {name: np.ones(size, np.float32) for name, size in {**good, **shapes}.items()})
    (y,) = kernel.run(None, {name: np.ones(size, np.float32) for name, size in good.items()})
    np.testing.assert_array_equal(y, np.ones((1, 4, 6)))  # a refusal leaves the session as it was


@pytest.mark.parametrize(
    ("attributes", "dtype", "sentence"),
    [
        ({"scale": 1.0}, "FLOAT", "PartialSoftmaxAttention: the attribute 'heads' is missing or is not an integer"),
        ({"heads": 2}, "FLOAT", "PartialSoftmaxAttention: the attribute 'scale' is missing or is not a float"),
        ({"heads": 0, "scale": 1.0}, "FLOAT", "PartialSoftmaxAttention: the attribute 'heads' must be 1 or more, and is 0"),
        ({"heads": 2, "scale": float("inf")}, "FLOAT", "PartialSoftmaxAttention: the attribute 'scale' must be a finite number"),
        (
            {"heads": 2, "scale": 1.0},
            "FLOAT16",
            r"Type 'tensor\(float16\)' of input parameter \(q\) of operator \(PartialSoftmaxAttention\)",
        ),
    ],
)
def test_the_kernel_refuses_attributes_and_types_with_a_sentence(
    ops_library: Path, attributes: dict[str, float], dtype: str, sentence: str
) -> None:
    model = node("PartialSoftmaxAttention", ("B", "Q", 6), ("B", "K", 6), dtype=onnx.TensorProto.DataType.Value(dtype), **attributes)
    del model.functions[:]
    with pytest.raises(Exception, match=sentence):
        session(model, ops_library)


@pytest.mark.parametrize(("shape", "inferred"), [(("B", "Q", 6), ["B", "Q", 6]), (("B", None, 6), []), (None, [])])
def test_the_kernel_keeps_a_shape_that_is_known(ops_library: Path, shape: tuple[Any, ...] | None, inferred: list[Any]) -> None:
    model = node("FlashAttention", shape, ("B", "K", 6), heads=2, scale=0.5)
    del model.functions[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    kernel = session(model, ops_library)
    assert kernel.get_outputs()[0].shape == inferred
    assert kernel.run(None, operands((2, 2, 5, 7, 3), "none"))[0].shape == (2, 5, 6)


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
    before = ir.from_proto(ir.to_proto(model))
    (step,) = run(model, (FUSE_PARTIAL_SOFTMAX_ATTENTION if partial else FUSE_FLASH_ATTENTION,))
    assert (step.applied, step.refused) == (1, ())
    kinds = [each.op_type for each in model.graph]
    attach_bodies(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for expected, got in zip(session(before, None).run(None, feed(before)), session(model, None).run(None, feed(before)), strict=True):
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


UNSCALED = ATTENTION.replace("product = MatMul(qh, kh)      scores = Mul(product, scale)", "scores = MatMul(qh, kh)")
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
        (lambda: graph(UNSCALED, dtype="float16"), "the queries are FLOAT16, and the kernel takes FLOAT"),
    ],
)  # fmt: skip
def test_a_site_that_is_left_has_its_reason(model: Callable[[], ir.Model], reason: str) -> None:
    made = model()
    (softmax,) = (each for each in made.graph if each.op_type == "Softmax")
    (step,) = run(made, (FUSE_FLASH_ATTENTION,))
    assert step.applied == 0
    assert step.refused == (f"Softmax '{softmax.name}': {reason}",)


class Unet(torch.nn.Module):
    """SD's structure in small: 4 levels, 2 layers per block."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        structure = {"sample_size": 8, "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "cross_attention_dim": 16,
                     "attention_head_dim": 2, "layers_per_block": 2}  # fmt: skip
        self.unet = UNet2DConditionModel(**{**structure, **options})

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class Vae(torch.nn.Module):
    def __init__(self, part: str) -> None:
        super().__init__()
        vae = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                            up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
        self.part = vae.encoder if part == "encoder" else vae.decoder

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.part(sample)


class TextEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = CLIPTextConfig(vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=12, num_attention_heads=2,
                                bos_token_id=0, eos_token_id=3, pad_token_id=1)  # fmt: skip
        self.model = CLIPTextModel(config)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, return_dict=False)[0]


# SDXL: attention in the lower two of three levels, 2 and 10 layers deep; the refiner: in the middle two of four, 4 deep
SDXL = {"block_out_channels": (8, 8, 8), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
REFINER = {"transformer_layers_per_block": 4, "use_linear_projection": True,
           "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
           "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
SMALL = {"block_out_channels": (8, 8), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1,
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
COUNTS = {"unet": 32, "small": 8, "sdxl": 140, "refiner": 88, "decoder": 1, "encoder": 1, "text_encoder": 12}


def component(name: str) -> Component:
    torch.manual_seed(zlib.crc32(name.encode()))
    modules: dict[str, Callable[[], torch.nn.Module]] = {
        "unet": Unet,
        "small": lambda: Unet(**SMALL),
        "sdxl": lambda: Unet(**SDXL),
        "refiner": lambda: Unet(**REFINER),
        "decoder": lambda: Vae("decoder"),
        "encoder": lambda: Vae("encoder"),
        "text_encoder": TextEncoder,
    }
    space = {0: "batch_size", 2: "height", 3: "width"}
    if name == "text_encoder":
        inputs, axes = {"input_ids": torch.arange(18).reshape(2, 9)}, {"input_ids": {0: "batch_size", 1: "sequence_length"}}
    else:
        # the U-Net is traced at a size that it cannot halve three times: else torch takes its sizes for constants
        inputs = {"sample": torch.randn({"decoder": (2, 4, 8, 12), "encoder": (2, 3, 16, 24)}.get(name, (2, 4, 12, 10)))}
        axes = {"sample": space, "out": space}
    if name in ("unet", "small", "sdxl", "refiner"):
        inputs |= {"timestep": torch.tensor(5), "encoder_hidden_states": torch.randn(2, 7, 16)}
        axes |= {"encoder_hidden_states": {0: "batch_size", 1: "sequence_length"}}
    return Component(name, modules[name]().eval(), inputs, ("out",), axes)


def by_torchscript(made: Component, folder: Path) -> ir.Model:
    """As optimum does."""
    with torch.no_grad():
        torch.onnx.export(made.module, tuple(made.example_inputs.values()), folder / "model.onnx", dynamo=False, opset_version=17,
                          input_names=list(made.example_inputs), output_names=["out"], dynamic_axes=made.dynamic_axes)  # fmt: skip
    return ir.load(folder / "model.onnx")


EXPORTERS: dict[str, Callable[[Component, Path], ir.Model]] = {
    "dynamic": lambda made, _: trace(made, dynamic=True),
    "static": lambda made, _: trace(made, dynamic=False),
    "torchscript": by_torchscript,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        ("small", "dynamic"),
        ("unet", "static"),
        ("unet", "torchscript"),
        ("sdxl", "static"),
        ("refiner", "static"),
        ("decoder", "dynamic"),
        ("decoder", "torchscript"),
        ("encoder", "static"),
        ("text_encoder", "dynamic"),
        ("text_encoder", "torchscript"),
    ],
)
def test_every_site_of_a_real_export_is_fused(ops_library: Path, tmp_path: Path, name: str, exporter: str) -> None:
    made = component(name)
    model = EXPORTERS[exporter](made, tmp_path)
    (*_, step) = run(model, (*PORTABLE, FUSE_FLASH_ATTENTION))
    assert step.refused == ()
    kinds = Counter(each.op_type for each in model.graph)
    assert kinds["FlashAttention"] == COUNTS[name]
    attach_bodies(model)

    with torch.no_grad():
        expected = made.module(*made.example_inputs.values()).double().numpy()
    feeds = {key: value.numpy() for key, value in made.example_inputs.items()}
    for library in (None, ops_library):  # one file, with the kernels and without
        (got,) = session(model, library).run(None, feeds)
        assert 10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum()) >= 90
