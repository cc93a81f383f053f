"""Reshape, InstanceNormalization, Reshape, Mul, Add or GroupNormalization, and SiLU, in a graph -> GroupNorm and GroupNormSilu."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graph_passes.ops.group_norm import FUSE_GROUP_NORM
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.pipelines import for_target
from graph_passes.step import run

from ...architectures import Traced
from ..harness import UNIT, before_and_after, copy, hold_against_torch
from .reference import OPS

INSTANCE = """
    grouped = Reshape(x, by_group)
    normalized = InstanceNormalization<epsilon: float = 0.001>(grouped, ones, zeros)
    restored = Reshape(normalized, back)
    scaled = Mul(restored, scale)
    y = Add(scaled, bias)
"""
BY_SHAPE = INSTANCE.replace("restored = Reshape(normalized, back)", "shape = Shape(x) restored = Reshape(normalized, shape)")
CONSTANTS = {
    "by_group": "int64[3] by_group = {0, 2, -1}",
    "ones": "float[2] ones = {1, 1}",
    "zeros": "float[2] zeros = {0, 0}",
    "scale": "float[4, 1, 1] scale = {1, 2, 3, -4}",
    "bias": "float[4, 1, 1] bias = {0.5, -1, 2, 0}",
    "back": "int64[4] back = {0, 4, 3, 5}",
}


def graph(body: str, x: str = "float[N, 4, 3, 5] x", y: str = "float[N, 4, 3, 5] y", opset: int = 20, **constants: str) -> ir.Model:
    """A model in ONNX's text form, with CONSTANTS where `constants` does not say otherwise."""
    used = {name: text for name, text in {**CONSTANTS, **constants}.items() if name in body}
    model = ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y}) <{", ".join(used.values())}> {{ {body} }}')
    run(model, (LIFT_CONSTANTS, INFER_SHAPES))
    return model


def fused(model: ir.Model) -> list[str]:
    """Fuses, holds that the graph computes what it did, and returns the types of its nodes."""
    before = copy(model)
    (step,) = run(model, (FUSE_GROUP_NORM,))
    assert (step.name, step.refused) == ("fuse group norm", ())
    kinds = [each.op_type for each in model.graph]
    x = np.random.default_rng(5).normal(2, 3, (2, 4, 3, 5)).astype(np.float32)
    for expected, got in before_and_after(before, model, {"x": x}):
        np.testing.assert_allclose(got, expected, rtol=0, atol=32 * UNIT * 4)  # both are right to some units of at most 4 * scale 4
    return kinds


SILU = {"": "", "y * s": "s = Sigmoid(y) z = Mul(y, s)", "s * y": "s = Sigmoid(y) z = Mul(s, y)"}


@pytest.mark.parametrize("silu", SILU)
@pytest.mark.parametrize(
    "body",
    [
        INSTANCE,
        INSTANCE.replace("Mul(restored, scale)", "Mul(scale, restored)").replace("Add(scaled, bias)", "Add(bias, scaled)"),
        BY_SHAPE,
    ],
    ids=["torch", "operands the other way", "restored by Shape"],
)
def test_the_rule_takes_instance_normalization(body: str, silu: str) -> None:
    output = {"y": "float[N, 4, 3, 5] z"} if silu else {}
    model = graph(body + SILU[silu], **output)
    assert fused(model) == ["GroupNormSilu" if silu else "GroupNorm"]
    made = model.graph[0]
    assert (made.domain, made.attributes["groups"].as_int()) == ("handheld", 2)
    assert made.attributes["epsilon"].as_float() == np.float32(0.001)


@pytest.mark.parametrize("silu", SILU)
def test_the_rule_takes_group_normalization(silu: str) -> None:
    body = "y = GroupNormalization<num_groups: int = 2>(x, scale, bias)" + SILU[silu]
    output = {"y": "float[N, 4, 3, 5] z"} if silu else {}
    flat = {name: CONSTANTS[name].replace("[4, 1, 1]", "[4]") for name in ("scale", "bias")}
    model = graph(body, opset=21, **flat, **output)
    assert fused(model) == ["GroupNormSilu" if silu else "GroupNorm"]
    assert model.graph[0].attributes["epsilon"].as_float() == np.float32(1e-5)


def test_the_rule_takes_another_view_of_the_positions() -> None:
    """The attention of the VAE: [N, C, H, W] becomes [N, C, H * W] in the same Reshape that restores the channels."""
    narrow = {name: CONSTANTS[name].replace("[4, 1, 1]", "[4, 1]") for name in ("scale", "bias")}
    model = graph(INSTANCE, y="float[N, 4, 15] y", back="int64[3] back = {0, 4, 15}", **narrow)
    assert fused(model) == ["Reshape", "GroupNorm"]


def test_a_value_that_silu_shares_stays() -> None:
    model = graph(INSTANCE + "s = Sigmoid(y) z = Mul(y, s) w = Neg(y)", y="float[N, 4, 3, 5] z, float[N, 4, 3, 5] w")
    assert sorted(fused(model)) == ["GroupNorm", "Mul", "Neg", "Sigmoid"]


def test_no_weight_is_read() -> None:
    model = graph(INSTANCE)

    def unread() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    for name in ("scale", "bias"):
        model.graph.initializers[name].const_value = ir.LazyTensor(unread, ir.DataType.FLOAT, ir.Shape([4, 1, 1]))
    assert FUSE_GROUP_NORM.run(model) == 1
    with pytest.raises(AssertionError, match="a weight was read"):
        model.graph[0].inputs[1].const_value.numpy()  # type: ignore[union-attr]


BETWEEN = "it does not stand between Reshape and Reshape, Mul, Add with no other reader of the values between them"
OTHER_ROW = {"y": "float[N, 4, 3, 5] y, float[N, 2, M] w"}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: graph(BY_SHAPE, x="float[A, B, C, D] x", y="float[A, 4, C, D] y"), "the input is not known to be [batch, channels, ...]"),
        (lambda: graph(INSTANCE, ones="float[2] ones = {1, 2}"), "it has a scale and a bias of its own"),
        (lambda: graph(INSTANCE, zeros="float[2] zeros = {0, 1}"), "it has a scale and a bias of its own"),
        (
            lambda: graph(INSTANCE, by_group="int64[3] by_group = {-1, 2, 30}", x="float[N, 4, 3, 5] x"),
            "the Reshape in front of it is not known to make [batch, 2, ...] of the input",
        ),
        (
            lambda: graph(INSTANCE, back="int64[4] back = {-1, 4, 5, 3}", y="float[M, 4, 5, 3] y"),
            "the Reshape behind it is not known to make [batch, channels, ...] of its output",
        ),
        (lambda: graph(INSTANCE, scale="float[5] scale = {1, 2, 3, 4, 5}"), "the scale is not known to hold one value per channel"),
        (lambda: graph(INSTANCE, bias="float[1] bias = {3}"), "the bias is not known to hold one value per channel"),
        (lambda: graph(INSTANCE + "w = Neg(normalized)", **OTHER_ROW), BETWEEN),
        (lambda: graph(INSTANCE.replace("Add(scaled, bias)", "Sub(scaled, bias)")), BETWEEN),
    ],
)  # fmt: skip
def test_a_site_that_is_left_has_its_reason(model: Callable[[], ir.Model], reason: str) -> None:
    made = model()
    (step,) = run(made, (FUSE_GROUP_NORM,))
    assert step.applied == 0
    assert step.refused == (f"InstanceNormalization '{made.graph[1].name}': {reason}",)


@pytest.mark.parametrize(
    ("opset", "groups", "size", "reason"),
    [
        (18, 2, 2, "the scale is not known to hold one value per channel"),  # until 20 there was one value per group
        (21, 3, 4, "4 channels are no multiple of 3 groups"),
    ],
)
def test_a_group_normalization_that_is_left_has_its_reason(opset: int, groups: int, size: int, reason: str) -> None:
    ones = ", ".join(["1"] * size)
    affine = {"scale": f"float[{size}] scale = {{{ones}}}", "bias": f"float[{size}] bias = {{{ones}}}"}
    model = graph(f"y = GroupNormalization<num_groups: int = {groups}>(x, scale, bias)", opset=opset, **affine)
    assert FUSE_GROUP_NORM.run(model) == 0
    assert FUSE_GROUP_NORM.refused(model) == [f"GroupNormalization '{model.graph[0].name}': {reason}"]


def test_half_precision_is_left_with_its_reason() -> None:
    """The kernel is float32's, and a float16 node is a load error where it is registered, not a fallback."""
    inputs = "float16[N, 4, 3, 5] x, float16[4] scale, float16[4] bias"
    body = "y = GroupNormalization<num_groups: int = 2>(x, scale, bias)"
    model = ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 21]> g ({inputs}) => (float16[N, 4, 3, 5] y) {{ {body} }}')
    assert FUSE_GROUP_NORM.run(model) == 0
    (sentence,) = FUSE_GROUP_NORM.refused(model)
    assert sentence.endswith(": the input is FLOAT16, and the kernel takes FLOAT")


UNET, DECODER = {"GroupNorm": 16, "GroupNormSilu": 45}, {"GroupNorm": 1, "GroupNormSilu": 29}


@pytest.mark.parametrize(
    ("architecture", "exporter", "opset", "counts"),
    [
        ("unet", "dynamic", 20, UNET),
        ("unet", "torchscript", 14, UNET),
        ("vae_decoder", "dynamo", 21, DECODER),
        ("vae_decoder", "torchscript", 17, DECODER),
        ("vae_encoder", "static", 20, {"GroupNorm": 1, "GroupNormSilu": 21}),
    ],
)
def test_every_site_of_a_real_export_is_fused(
    ops_library: Path, traced: Callable[..., Traced], architecture: str, exporter: str, opset: int, counts: dict[str, int]
) -> None:
    export = traced(architecture, exporter, opset)
    model = export.model()
    steps = {step.name: step for step in run(model, for_target("cpu"))}
    assert steps["fuse group norm"].refused == ()
    assert Counter(each.op_type for each in model.graph if each.op_type in OPS) == counts
    assert {function.name for function in model.functions.values()} >= set(OPS)
    hold_against_torch(model, export, ops_library)
