"""Conv of 3x3, and the sum or SiLU behind it, in a graph -> WinogradConv, WinogradConvAdd and WinogradConvSilu."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graph_passes.ops.winograd_conv import fuse_winograd, refused_convolutions, sites
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.passes.winograd import all_with
from graph_passes.pipelines import PORTABLE
from graph_passes.step import run

from ...architectures import Traced
from ..harness import UNIT, before_and_after, copy, hold_against_torch

CONV = "y = Conv<pads: ints = [1, 1, 1, 1]>(x, w, b)"
WEIGHTS = "float[4, 4, 3, 3] w, float[4] b"
X = "float[N, 4, H, W] x"


def graph(body: str, x: str = X, y: str = "float[N, 4, H, W] y", weights: str = WEIGHTS) -> ir.Model:
    """A model in ONNX's text form whose weights are random initializers."""
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 20]> g ({x}, {weights}) => ({y}) {{ {body} }}')
    rng = np.random.default_rng(0)
    for value in list(model.graph.inputs):
        if value.name in ("w", "b", "v"):
            value.const_value = ir.tensor(rng.normal(size=value.shape.numpy()).astype(value.dtype.numpy()), name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    run(model, (LIFT_CONSTANTS, INFER_SHAPES))
    return model


def fused(model: ir.Model, tile: int = 4) -> list[str]:
    """Fuses every site, holds that the graph computes what it did, and returns the types of its nodes."""
    before = copy(model)
    (step,) = run(model, (all_with(tile),))
    assert step.name == "fuse winograd convolutions"
    kinds = [node.op_type for node in model.graph]
    sizes, feeds = {"N": 2, "H": 5, "W": 7}, {}
    for value in before.graph.inputs:
        rng = np.random.default_rng(zlib.crc32(value.name.encode()))
        shape = [size if isinstance(size, int) else sizes[size.value] for size in value.shape]
        feeds[value.name] = rng.normal(size=shape).astype(np.float32)
    for expected, got in before_and_after(before, model, feeds):
        np.testing.assert_allclose(got, expected, rtol=0, atol=64 * UNIT * (1 + np.abs(expected).max()))
    return kinds


@pytest.mark.parametrize(
    ("body", "inputs", "kinds"),
    [
        (CONV, X, ["WinogradConv"]),
        ("y = Conv<pads: ints = [1, 1, 1, 1]>(x, w)", X, ["WinogradConv"]),  # no bias: zeros
        ('y = Conv<auto_pad: string = "SAME_UPPER">(x, w, b)', X, ["WinogradConv"]),
        (CONV.replace("y =", "c =") + " y = Add(c, r)", f"{X}, float[N, 4, H, W] r", ["WinogradConvAdd"]),
        (CONV.replace("y =", "c =") + " y = Add(r, c)", f"{X}, float[N, 4, H, W] r", ["WinogradConvAdd"]),
        (CONV.replace("y =", "c =") + " s = Sigmoid(c) y = Mul(c, s)", X, ["WinogradConvSilu"]),
        # the embedding of the time, a value per channel, is no residual
        (CONV.replace("y =", "c =") + " y = Add(c, t)", f"{X}, float[N, 4, 1, 1] t", ["WinogradConv", "Add"]),
        (CONV.replace("y =", "c =") + " y = Add(c, r)", f"{X}, float[N, 4, H, 1] r", ["WinogradConv", "Add"]),
        (CONV.replace("y =", "c =") + " y = Add(c, c)", X, ["WinogradConv", "Add"]),
        # two sites and one Add: the first takes it in
        (CONV.replace("y =", "c =") + " d = Conv<pads: ints = [1, 1, 1, 1]>(x, w) y = Add(c, d)", X, ["WinogradConv", "WinogradConvAdd"]),
        ("c = Conv<pads: ints = [1, 1, 1, 1]>(x, w, b) y = Conv<pads: ints = [1, 1, 1, 1]>(c, w, b)", X, ["WinogradConv", "WinogradConv"]),
    ],
)  # fmt: skip
def test_the_rule_takes_a_convolution_and_what_follows_it(body: str, inputs: str, kinds: list[str]) -> None:
    model = graph(body, inputs)
    assert fused(model) == kinds
    assert sum(name.startswith("w") for name in model.graph.initializers) == 1  # transformed, and the plain ones are gone


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        ("c = {conv} y = Add(c, x) z = Neg(c)", ["Add", "Neg", "WinogradConv"]),
        ("c = {conv} s = Sigmoid(c) y = Mul(c, s) z = Neg(c)", ["Mul", "Neg", "Sigmoid", "WinogradConv"]),
        ("c = {conv} s = Sigmoid(c) y = Mul(c, s) z = Neg(s)", ["Mul", "Neg", "Sigmoid", "WinogradConv"]),
        ("z = {conv} y = Add(z, x)", ["Add", "WinogradConv"]),
    ],
)
def test_a_value_that_something_else_reads_stays(body: str, kinds: list[str]) -> None:
    model = graph(body.format(conv=CONV.partition("= ")[2]), y="float[N, 4, H, W] y, float[N, 4, H, W] z")
    assert sorted(fused(model)) == kinds


ONE, AROUND = "and the algorithm's is 1x1", "and the kernel's is one pixel on every side"
GROUPED = "float[4, 2, 3, 3] w, float[4] b"


@pytest.mark.parametrize(
    ("body", "x", "weights", "reason"),
    [
        (CONV, f"{X}, float[4, 4, 3, 3] w", "float[4] b", "its weights are only known at run time"),
        (CONV.replace("<", "<strides: ints = [2, 2], "), X, WEIGHTS, f"its stride is 2x2, {ONE}"),
        (CONV.replace("[1, 1, 1, 1]", "[2, 2, 2, 2], dilations: ints = [2, 2]"), X, WEIGHTS, f"its dilation is 2x2, {ONE}"),
        (CONV.replace("<", "<group: int = 2, "), X, GROUPED, "it has 2 groups of channels, and the kernel takes one"),
        (CONV.replace("[1, 1, 1, 1]", "[0, 0, 0, 0]"), X, WEIGHTS, f"its padding is [0, 0, 0, 0], {AROUND}"),
        (CONV.replace("pads: ints = [1, 1, 1, 1]", 'auto_pad: string = "VALID"'), X, WEIGHTS, f"its padding is [0, 0, 0, 0], {AROUND}"),
        (CONV, X.replace("float", "float16"), WEIGHTS.replace("float", "float16"), "the input is FLOAT16, and the kernel takes FLOAT"),
    ],
)
def test_a_convolution_that_is_left_has_its_reason(body: str, x: str, weights: str, reason: str) -> None:
    dtype = "float16" if "float16" in x else "float"
    names = f"{x}, {weights}"
    model = graph(body, x, f"{dtype}[N, M, K, L] y", weights) if "w" in weights else graph_with_free_weights(body, names)
    assert sites(model) == []
    (sentence,) = refused_convolutions(model)
    assert sentence == f"Conv '{model.graph[0].name}': {reason}"
    assert fuse_winograd(model, {}) == 0


def graph_with_free_weights(body: str, inputs: str) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => (float[N, 4, H, W] y) {{ {body} }}')
    run(model, (INFER_SHAPES,))
    return model


def test_other_kernels_are_no_candidates() -> None:
    model = graph("y = Conv(x, w, b)", weights="float[4, 4, 1, 1] w, float[4] b")
    assert (sites(model), refused_convolutions(model)) == ([], [])


def test_no_weight_is_read_before_it_is_written() -> None:
    model = graph(CONV)

    def unread() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model.graph.initializers["w"].const_value = ir.LazyTensor(unread, ir.DataType.FLOAT, ir.Shape([4, 4, 3, 3]))
    (found,) = sites(model)
    assert fuse_winograd(model, {found.convolution: (4, ir.DataType.FLOAT)}) == 1
    with pytest.raises(AssertionError, match="a weight was read"):
        model.graph.initializers["w.winograd"].const_value.numpy()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("architecture", "exporter", "opset", "counts", "strided"),
    [
        ("unet", "dynamic", 20, {"WinogradConv": 27, "WinogradConvAdd": 22}, 3),
        ("unet", "torchscript", 14, {"WinogradConv": 49}, 3),  # the old exporter says of no residual how large it is
        ("vae_decoder", "dynamic", 20, {"WinogradConv": 19, "WinogradConvAdd": 14}, 0),
        ("vae_encoder", "static", 20, {"WinogradConv": 12, "WinogradConvAdd": 10}, 3),
    ],
)
def test_every_site_of_a_real_export_is_found(
    ops_library: Path, traced: Callable[..., Traced], architecture: str, exporter: str, opset: int, counts: dict[str, int], strided: int
) -> None:
    export = traced(architecture, exporter, opset)
    model = export.model()
    steps = run(model, (*PORTABLE, all_with(4)))
    assert Counter(each.op_type for each in model.graph if each.domain == "handheld") == counts
    (refused,) = (step.refused for step in steps if step.name == "fuse winograd convolutions")
    assert len(refused) == strided
    assert all(sentence.endswith("its stride is 2x2, and the algorithm's is 1x1") for sentence in refused)
    hold_against_torch(model, export, ops_library)
