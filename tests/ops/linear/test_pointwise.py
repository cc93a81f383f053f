"""PointwiseConv and PointwiseConvAdd, linear layers along the channels of a picture: the bodies, the kernels, the rule."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graph_passes.ops.linear import fuse_pointwise
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.pipelines import PORTABLE
from graph_passes.step import run

from ...architectures import Traced
from ..harness import (
    ISAS,
    OPSETS,
    Shape,
    before_and_after,
    copy,
    hold_against_torch,
    hold_that_the_library_decides,
    inferred,
    one_op,
    runs_here,
    session,
    without_body,
    without_shape,
)
from .reference import NUMBERS, PRECISIONS, hold, rounding, rounds_to, tensor

OPS = ("PointwiseConv", "PointwiseConvAdd")
SHAPES = [  # of the input, and the channels of the output; bfloat16 takes even numbers of channels
    ((1, 2, 1, 1), 1),
    ((1, 3, 5, 7), 4),
    ((2, 6, 9, 15), 13),
    ((2, 320, 8, 8), 97),  # few pixels: the rows are divided
    ((1, 34, 41, 53), 40),  # blocks of pixels, the last one short
    ((1, 1502, 3, 7), 16),  # a depth of two blocks
]
EMPTY = [((0, 4, 3, 3), 2), ((1, 4, 0, 3), 2)]  # which ONNX Runtime's Conv refuses


def node(op_type: str, shape: Shape, weights: np.ndarray, opset: int = 20) -> onnx.ModelProto:
    """A model of one op; strings in `shape` are dynamic dimensions."""
    inputs: dict[str, Shape | onnx.TensorProto] = {"x": shape, "weights": tensor("weights", weights), "bias": None}
    if op_type == "PointwiseConvAdd":
        inputs["residual"] = None if shape is None else (shape[0], len(weights), *shape[2:])
    return one_op(op_type, inputs, None, opset)


def operands(op_type: str, shape: tuple[int, ...], channels_out: int, precision: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The weights as a file has them, and what is fed."""
    generator = np.random.default_rng(zlib.crc32(repr((op_type, shape, channels_out)).encode()))
    weights = (generator.normal(0, 1, (channels_out, shape[1], 1, 1)) / np.sqrt(shape[1])).astype(np.float32)
    feeds = {"x": generator.normal(0.1, 1, shape).astype(np.float32), "bias": generator.normal(0, 1, channels_out).astype(np.float32)}
    if op_type == "PointwiseConvAdd":
        feeds["residual"] = generator.normal(0, 1, (shape[0], channels_out, *shape[2:])).astype(np.float32)
    return weights.astype(NUMBERS["fp32" if shape[1] % 2 else precision]), feeds


def oracle(weights: np.ndarray, feeds: dict[str, np.ndarray], rounds: str = "fp32") -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the error that runtime/ops/linear/linear.h allows a kernel, which rounds the picture to `rounds`."""
    x, bias, residual = (feeds.get(name, np.zeros(1)).astype(np.float64) for name in ("x", "bias", "residual"))
    matrix, bias = weights.astype(np.float64)[:, :, 0, 0], bias[:, None, None]
    y, sums = (np.einsum("oc,nchw->nohw", left, right) for left, right in ((matrix, x), (np.abs(matrix), np.abs(x))))
    beside = np.abs(bias) + np.abs(residual)
    depth, sizes = matrix.shape[1], np.abs(matrix).sum(axis=1)[:, None, None]
    return y + bias + residual, (depth + 4) * 2.0**-24 * (sums + beside) + rounding(depth, sums, sizes, rounds)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_a_convolution_of_one_pixel(op_type: str, precision: str) -> None:
    for shape, channels_out in SHAPES:
        weights, feeds = operands(op_type, shape, channels_out, precision)
        hold(session(node(op_type, shape, weights), None).run(None, feeds)[0], *oracle(weights, feeds))


@pytest.mark.parametrize("opset", OPSETS)
def test_the_body_is_valid_at_every_opset(opset: int) -> None:
    weights, feeds = operands("PointwiseConvAdd", (2, 6, 3, 5), 4, "bf16")
    model = node("PointwiseConvAdd", ("N", 6, "H", "W"), weights, opset)
    assert inferred(model)[:2] == ["N", 4]
    hold(session(model, None).run(None, feeds)[0], *oracle(weights, feeds))


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_is_a_convolution_of_one_pixel(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for op_type in OPS:
        for precision in PRECISIONS:
            for shape, channels_out in (*SHAPES, *EMPTY):
                weights, feeds = operands(op_type, shape, channels_out, precision)
                model = node(op_type, None, weights)
                if not runs_here(isa, model, ops_library, monkeypatch):
                    return
                rounds = rounds_to(precision if weights.dtype != np.float32 else "fp32", isa)
                hold(session(model, ops_library).run(None, feeds)[0], *oracle(weights, feeds, rounds))


@pytest.mark.parametrize("special", [np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_pixel(ops_library: Path, special: float) -> None:
    for precision in PRECISIONS:
        weights, feeds = operands("PointwiseConv", (1, 6, 5, 8), 3, precision)
        feeds["x"][0, 2, 3, 4] = special
        (got,) = session(node("PointwiseConv", None, weights), ops_library).run(None, feeds)
        assert np.argwhere(~np.isfinite(got)).tolist() == [[0, channel, 3, 4] for channel in range(3)]


def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, feeds = operands("PointwiseConvAdd", (2, 6, 3, 5), 4, "fp32")
    model = node("PointwiseConvAdd", ("N", 6, "H", "W"), weights)
    for library in (ops_library, None):
        hold(session(model, library).run(None, feeds)[0], *oracle(weights, feeds))
    hold_that_the_library_decides(model, ops_library, monkeypatch)


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({"x": (6, 3, 5)}, r"PointwiseConvAdd: the input has shape \[6, 3, 5\], and must be \[batch, channels, height, width\]"),
        ({"x": (2, 5, 3, 5)}, r"PointwiseConvAdd: the shape of the weights is \[4, 6, 1, 1\], and must be \[channels out, 5, 1, 1\]"),
        ({"bias": (6,)}, r"PointwiseConvAdd: the shape of the bias is \[6\], and must be \[4\]"),
        ({"residual": (1, 4, 3, 5)}, r"PointwiseConvAdd: the shape of the residual is \[1, 4, 3, 5\], and must be \[2, 4, 3, 5\]"),
    ],
)
def test_the_kernel_refuses_shapes_with_a_sentence(ops_library: Path, feeds: dict[str, tuple[int, ...]], sentence: str) -> None:
    weights, good = operands("PointwiseConvAdd", (2, 6, 3, 5), 4, "fp32")
    kernel = session(without_body(node("PointwiseConvAdd", None, weights)), ops_library)
    with pytest.raises(Exception, match=sentence):
        kernel.run(None, good | {name: np.ones(size, np.float32) for name, size in feeds.items()})
    assert kernel.run(None, good)[0].shape == (2, 4, 3, 5)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (np.zeros((4, 6), np.float32), r"the shape of the weights is \[4, 6\], and must be \[channels out, 6, 1, 1\]"),
        (np.zeros((4, 6, 3, 3), np.float32), r"the shape of the weights is \[4, 6, 3, 3\], and must be \[channels out, 6, 1, 1\]"),
        (np.zeros((4, 5, 1, 1), ml_dtypes.bfloat16), "bfloat16 weights take an even number of channels, and there are 5"),
        (np.zeros((4, 5, 1, 1), np.float16), "float16 weights take an even number of channels, and there are 5"),
    ],
)
def test_the_kernel_refuses_weights_with_a_sentence(ops_library: Path, weights: np.ndarray, sentence: str) -> None:
    model = without_body(node("PointwiseConv", None, weights.astype(np.float32) if weights.dtype == np.float16 else weights))
    if weights.dtype == np.float16:
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
    feeds = {"x": np.ones((1, 5 if weights.shape[1] == 5 else 6, 2, 2), np.float32), "bias": np.ones(4, np.float32)}
    with pytest.raises(Exception, match=f"PointwiseConv: {sentence}"):
        session(model, ops_library).run(None, feeds)


def test_the_kernel_infers_its_shape(ops_library: Path) -> None:
    weights, _ = operands("PointwiseConv", (2, 6, 3, 5), 4, "bf16")
    kernel = session(without_shape(without_body(node("PointwiseConv", ("N", 6, "H", 5), weights))), ops_library)
    assert kernel.get_outputs()[0].shape == ["N", 4, "H", 5]


def graph(body: str, outputs: str = "y") -> ir.Model:
    """A model in ONNX's text form of a picture x of 6 channels, with seeded weights w, v, odd, wide, b and s."""
    weights = {"w": (4, 6, 1, 1), "v": (4, 6, 1, 1), "odd": (4, 3, 1, 1), "wide": (4, 6, 3, 3), "b": (4,), "s": (1, 4, 1, 1)}
    ports = ", ".join(f"float[N, M, P, Q] {name}" for name in outputs.split())
    model = ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 20]> g (float[N, 6, 3, 5] x) => ({ports}) {{ {body} }}')
    for value in model.graph.outputs:
        value.shape = None
    generator = np.random.default_rng(7)
    unbound = {value.name: value for each in model.graph for value in each.inputs if value is not None and value.name in weights}
    for name, shape in weights.items():
        if (value := unbound.get(name)) is not None:
            value.const_value = ir.tensor(generator.normal(size=shape).astype(np.float32), name=name)
            value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
            model.graph.register_initializer(value)
    run(model, (LIFT_CONSTANTS, INFER_SHAPES))
    return model


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        ("y = Conv(x, w)", ["PointwiseConv"]),
        ("y = Conv(x, w, b)", ["PointwiseConv"]),
        ("h = Conv(x, w, b) r = Conv(x, v) y = Add(h, r)", ["PointwiseConv", "PointwiseConvAdd"]),
        ("h = Conv(x, w, b) y = Add(h, s)", ["PointwiseConv", "Add"]),  # one value per channel, of another shape
        ("h = Conv(x, w, b) y = Add(h, h)", ["PointwiseConv", "Add"]),
        ("p, q = Split<axis: int = 1, num_outputs: int = 2>(x) y = Conv(p, odd)", ["Split", "PointwiseConv"]),
        ("y = Conv<pads: ints = [1, 1, 1, 1]>(x, wide)", ["Conv"]),
    ],
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_rule_takes_what_follows(body: str, kinds: list[str], precision: str) -> None:
    model = graph(body)
    before = copy(model)
    (step,) = run(model, (fuse_pointwise(precision),))
    assert (step.name, step.refused) == ("fuse pointwise convolutions", ())
    assert [each.op_type for each in model.graph] == kinds
    types = {each.inputs[1].dtype for each in model.graph if each.domain == "handheld" and each.inputs[1] is not None}
    stored = "fp32" if "odd" in body else precision
    assert types <= {PRECISIONS[stored]}
    feeds = {"x": np.random.default_rng(5).normal(size=(2, 6, 3, 5)).astype(np.float32)}
    share = {"fp32": 1e-6, "bf16": 2.0**-8, "fp16": 2.0**-11}[stored]
    for expected, got in before_and_after(before, model, feeds):
        np.testing.assert_allclose(got, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Conv<strides: ints = [2, 2]>(x, w)", "it has groups, a border or a stride"),
        ("y = Conv<pads: ints = [0, 0, 1, 1]>(x, w)", "it has groups, a border or a stride"),
        ("y = Conv<group: int = 2>(x, odd)", "it has groups, a border or a stride"),
        ("n = Neg(x) h = Conv(x, w) r = Conv(n, w) y = Add(h, r)", "the weight is read by another node too, and would be stored twice"),
    ],
)
def test_a_site_that_is_left_has_its_reason(body: str, reason: str) -> None:
    (step,) = run(graph(body), (fuse_pointwise("bf16"),))
    assert step.applied == 0
    assert {sentence.partition("': ")[2] for sentence in step.refused} == {reason}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_site_of_a_real_export_is_fused(ops_library: Path, traced: Callable[..., Traced], precision: str) -> None:
    export = traced("vae_decoder", "dynamic")
    model = export.model()
    run(model, PORTABLE)
    (step,) = run(model, (fuse_pointwise(precision),))
    assert step.refused == ()
    # in front of everything, and around the one block that changes the number of channels
    assert Counter(each.op_type for each in model.graph if each.domain == "handheld") == {"PointwiseConv": 1, "PointwiseConvAdd": 1}
    hold_against_torch(model, export, ops_library, least=90 if precision == "fp32" else 40)
