"""GroupNorm and GroupNormSilu: the rules, the bodies and the kernels, against float64."""

from __future__ import annotations

import shutil
import subprocess
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

from export.component import Component
from export.trace import trace
from graph_passes.errors import GraphError
from graph_passes.ops.group_norm import FUSE_GROUP_NORM
from graph_passes.passes.attach_bodies import attach_bodies
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.pipelines import for_target
from graph_passes.step import run

OPS = ("GroupNorm", "GroupNormSilu")
ISAS = ("portable", "avx2", "avx512", "neon")
UNIT = 2.0**-23
SHAPES = [  # of the input, and the number of groups
    ((1, 4, 1, 1), 4),  # groups of one value
    ((1, 3, 1, 1), 1),
    ((2, 6, 3, 5), 3),
    ((1, 8, 7), 2),
    ((2, 4, 3, 5, 7), 2),
    ((1, 10, 33, 31), 5),
    ((2, 320, 8, 8), 32),
    ((1, 8, 128, 96), 2),
    ((2, 4, 0, 3), 2),  # nothing to do
]


def node(
    op_type: str, shape: tuple[Any, ...] | None, opset: int = 20, dtype: int = onnx.TensorProto.FLOAT, **attributes: Any
) -> onnx.ModelProto:
    """A model of one custom op with its body; strings in `shape` are dynamic dimensions."""
    inputs = [onnx.helper.make_tensor_value_info(name, dtype, size) for name, size in (("x", shape), ("scale", ["s"]), ("bias", ["b"]))]
    outputs = [onnx.helper.make_tensor_value_info("y", dtype, shape)]
    made = onnx.helper.make_node(op_type, ["x", "scale", "bias"], ["y"], domain="handheld", **attributes)
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("handheld", 1)]
    model = ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph([made], "g", inputs, outputs), opset_imports=imports, ir_version=8))
    attach_bodies(model)
    return ir.to_proto(model)


def session(model: onnx.ModelProto | ir.Model, library: Path | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def operands(shape: tuple[int, ...], mean: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(zlib.crc32(repr((shape, mean)).encode()))
    x = generator.normal(mean, 1, shape)
    scale, bias = generator.normal(1, 0.5, shape[1]), generator.normal(0, 1, shape[1])
    return {"x": x.astype(np.float32), "scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}


def oracle(op_type: str, groups: int, epsilon: float, x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the error that runtime/ops/group_norm/group_norm.h allows a kernel."""
    grouped = x.astype(np.float64).reshape(x.shape[0], groups, x.size // (x.shape[0] * groups))
    if not x.size:
        return np.zeros(x.shape), np.zeros(x.shape)
    deviation = np.sqrt(grouped.var(axis=2, keepdims=True) + epsilon)
    normalized = ((grouped - grouped.mean(axis=2, keepdims=True)) / deviation).reshape(x.shape)
    per_channel = (-1, *(1,) * (x.ndim - 2))
    wide_scale, wide_bias = (each.astype(np.float64).reshape(per_channel) for each in (scale, bias))
    y = normalized * wide_scale + wide_bias
    allowed = 1.5 * UNIT * ((np.abs(normalized) + 1) * np.abs(wide_scale) + np.abs(wide_bias))
    if op_type == "GroupNormSilu":
        y = y / (1 + np.exp(-y))
        allowed = 1.1 * allowed + 2.5 * UNIT * np.abs(y)  # the slope of SiLU is at most 1.1
    return y, allowed


def hold_body(got: np.ndarray, op_type: str, groups: int, mean: float, feeds: dict[str, np.ndarray]) -> None:
    """A body rounds the sum of a group, and so its mean, to float32: that is relative to the mean, not to what is left without it.

    4: its roundings are a dozen instead of the kernel's four; 8: what sums of tens of thousands of floats lose.
    """
    expected, allowed = oracle(op_type, groups, 1e-5, **feeds)
    slope = np.abs(feeds["scale"]).reshape(-1, *(1,) * (got.ndim - 2)) * (1 if got.size > got.shape[0] * groups else 1e-5**-0.5)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= 4 * allowed + 8 * 1.1 * UNIT * abs(mean) * slope).all()


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_group_normalization(op_type: str, shape: tuple[int, ...], groups: int, mean: float) -> None:
    model, feeds = node(op_type, shape, epsilon=1e-5, groups=groups), operands(shape, mean)
    hold_body(ReferenceEvaluator(model).run(None, feeds)[0], op_type, groups, mean, feeds)
    hold_body(session(model, None).run(None, feeds)[0], op_type, groups, mean, feeds)


@pytest.mark.parametrize("opset", [14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_valid_at_every_opset_and_infers_shapes(op_type: str, opset: int) -> None:
    model, feeds = node(op_type, ("N", 8, "H", "W"), opset, epsilon=1e-5, groups=4), operands((2, 8, 3, 5), 0)
    onnx.checker.check_model(model, full_check=True)
    hold_body(session(model, None).run(None, feeds)[0], op_type, 4, 0, feeds)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output[0].type.tensor_type.shape
    assert [size.dim_param or size.dim_value for size in inferred.dim] == ["N", 8, "H", "W"]


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_is_group_normalization(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = available(ops_library, monkeypatch)
    monkeypatch.setenv("HANDHELD_ISA", isa)
    if isa not in here:
        with pytest.raises(Exception, match=f"HANDHELD_ISA is '{isa}', and this machine has kernels for: portable"):
            session(node("GroupNorm", SHAPES[0][0], epsilon=1e-5, groups=4), ops_library)
        return
    for op_type in OPS:
        for shape, groups in SHAPES:
            kernel = session(node(op_type, shape, epsilon=1e-5, groups=groups), ops_library)
            for mean in (0.0, 1e4, -1e6):
                feeds = operands(shape, mean)
                expected, allowed = oracle(op_type, groups, 1e-5, **feeds)
                got = kernel.run(None, feeds)[0]
                assert got.shape == shape
                assert (np.abs(got - expected) <= allowed).all()


def available(library: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The instruction sets of this machine, from the library's own sentence."""
    monkeypatch.setenv("HANDHELD_ISA", "none")
    with pytest.raises(Exception, match="this machine has kernels for: ") as refusal:
        session(node("GroupNorm", (1, 4, 1, 1), epsilon=1e-5, groups=4), library)
    return str(refusal.value).rpartition("for: ")[2].strip().split(", ")


def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = node("GroupNorm", ("N", 8, "H"), epsilon=1e-5, groups=4), operands((2, 8, 30), 1)
    results = [session(model, library).run(None, feeds)[0] for library in (ops_library, None)]
    np.testing.assert_allclose(*results, rtol=0, atol=16 * UNIT * 4)
    monkeypatch.setenv("HANDHELD_ISA", "none")  # refused where there is a kernel, and only there
    session(model, None)
    with pytest.raises(Exception, match="HANDHELD_ISA is 'none'"):
        session(model, ops_library)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"x": (1, 5, 3)}, "GroupNorm: 5 channels are no multiple of 2 groups"),
        ({"scale": (3,)}, r"GroupNorm: the scale has shape \[3\], and the input has 4 channels"),
        ({"bias": (8,)}, r"GroupNorm: the bias has shape \[8\], and the input has 4 channels"),
    ],
)
def test_the_kernel_refuses_shapes_with_a_sentence(ops_library: Path, shapes: dict[str, tuple[int, ...]], sentence: str) -> None:
    kernel = session(node("GroupNorm", ("N", "C", "H"), epsilon=1e-5, groups=2), ops_library)
    good = {"x": (1, 4, 3), "scale": (4,), "bias": (4,)}
    with pytest.raises(Exception, match=sentence):
        kernel.run(None, {name: np.ones(size, np.float32) for name, size in {**good, **shapes}.items()})
    (y,) = kernel.run(None, {name: np.ones(size, np.float32) for name, size in good.items()})
    np.testing.assert_array_equal(y, np.ones((1, 4, 3)))  # a refusal leaves the session as it was


def test_the_kernel_refuses_an_input_without_channels(ops_library: Path) -> None:
    kernel = session(node("GroupNorm", ("N",), epsilon=1e-5, groups=2), ops_library)
    with pytest.raises(Exception, match=r"GroupNorm: the input has shape \[4\], and must be \[batch, channels, ...\]"):
        kernel.run(None, {name: np.ones(4, np.float32) for name in ("x", "scale", "bias")})


@pytest.mark.parametrize(
    ("attributes", "dtype", "sentence"),
    [
        ({"groups": 2}, "FLOAT", "GroupNormSilu: the attribute 'epsilon' is missing or is not a float"),
        ({"epsilon": 1e-5}, "FLOAT", "GroupNormSilu: the attribute 'groups' is missing or is not an integer"),
        ({"epsilon": 1e-5, "groups": 2.5}, "FLOAT", "GroupNormSilu: the attribute 'groups' is missing or is not an integer"),
        ({"epsilon": 1e-5, "groups": 0}, "FLOAT", "GroupNormSilu: the attribute 'groups' must be 1 or more, and is 0"),
        ({"epsilon": -1.0, "groups": 2}, "FLOAT", "GroupNormSilu: the attribute 'epsilon' must be a number from 0 on"),
        ({"epsilon": 1e-5, "groups": 2}, "FLOAT16", r"Type 'tensor\(float16\)' of input parameter \(x\) of operator \(GroupNormSilu\)"),
    ],
)
def test_the_kernel_refuses_attributes_and_types_with_a_sentence(
    ops_library: Path, attributes: dict[str, float], dtype: str, sentence: str
) -> None:
    model = node("GroupNormSilu", (1, 4, 3), dtype=onnx.TensorProto.DataType.Value(dtype), **attributes)
    del model.functions[:]
    with pytest.raises(Exception, match=sentence):
        session(model, ops_library)


@pytest.mark.parametrize(("shape", "inferred"), [(("N", 8, 5, "W"), ["N", 8, 5, "W"]), (("N", 8, None, "W"), []), (None, [])])
def test_the_kernel_keeps_a_shape_that_is_known(ops_library: Path, shape: tuple[Any, ...] | None, inferred: list[Any]) -> None:
    model = node("GroupNormSilu", shape, epsilon=1e-5, groups=4)
    del model.functions[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    kernel = session(model, ops_library)
    assert kernel.get_outputs()[0].shape == inferred
    assert kernel.run(None, operands((2, 8, 5, 7), 0))[0].shape == (2, 8, 5, 7)


def test_code_for_one_instruction_set_stays_in_its_file(ops_library: Path) -> None:
    """The linker keeps one copy of an inline function: none may come from a file that is compiled for a newer machine."""
    nm = shutil.which("nm")
    assert nm is not None, "binutils come with the compiler"
    objects = [path for path in (ops_library.parent / "CMakeFiles").rglob("*.cc.o") if path.name.split(".")[0].rpartition("_")[2] in ISAS]
    assert objects
    for path in objects:
        symbols = subprocess.run([nm, "--defined-only", str(path)], capture_output=True, text=True, check=True).stdout
        shared = [line.split()[-1] for line in symbols.splitlines() if line.split()[-2] in "WVu"]
        assert shared == [], path.name


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
    before = ir.from_proto(ir.to_proto(model))
    (step,) = run(model, (FUSE_GROUP_NORM,))
    assert (step.name, step.refused) == ("fuse group norm", ())
    kinds = [each.op_type for each in model.graph]
    attach_bodies(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = np.random.default_rng(5).normal(2, 3, (2, 4, 3, 5)).astype(np.float32)
    for expected, got in zip(session(before, None).run(None, {"x": x}), session(model, None).run(None, {"x": x}), strict=True):
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


@pytest.mark.parametrize("opset", [13, 24])
def test_a_body_is_attached_only_where_it_is_valid(opset: int) -> None:
    with pytest.raises(GraphError, match=f"the model has opset {opset}, and the bodies of the custom ops are written for 14 to 23"):
        node("GroupNorm", (1, 4, 3), opset, epsilon=1e-5, groups=2)


class Unet(torch.nn.Module):
    """SD's structure in small: 4 levels, 2 layers per block."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, cross_attention_dim=16,
                                         attention_head_dim=2, layers_per_block=2)  # fmt: skip

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class Vae(torch.nn.Module):
    def __init__(self, part: str) -> None:
        super().__init__()
        vae = AutoencoderKL(block_out_channels=(8, 8, 16, 16), norm_num_groups=4, layers_per_block=2,
                            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip
        self.part = vae.encoder if part == "encoder" else vae.decoder

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.part(sample)


AXES = {0: "batch_size", 2: "height", 3: "width"}
COUNTS = {"unet": {"GroupNorm": 16, "GroupNormSilu": 45}, "decoder": {"GroupNorm": 1, "GroupNormSilu": 29},
          "encoder": {"GroupNorm": 1, "GroupNormSilu": 21}}  # fmt: skip


def component(name: str) -> Component:
    torch.manual_seed(zlib.crc32(name.encode()))
    module = Unet() if name == "unet" else Vae(name)
    for each in module.modules():
        if isinstance(each, torch.nn.GroupNorm):  # as they come, scale and bias are 1 and 0, and an error in them would not be seen
            torch.nn.init.normal_(each.weight, 1, 0.3)
            torch.nn.init.normal_(each.bias, 0, 0.3)
    # the U-Net is traced at a size that it cannot halve three times: else torch takes its sizes for constants
    inputs = {"sample": torch.randn({"unet": (2, 4, 12, 10), "decoder": (2, 4, 8, 8), "encoder": (2, 3, 32, 32)}[name])}
    axes = {"sample": AXES}
    if name == "unet":
        inputs |= {"timestep": torch.tensor(5), "encoder_hidden_states": torch.randn(2, 7, 16)}
        axes |= {"encoder_hidden_states": {0: "batch_size", 1: "sequence_length"}}
    return Component(name, module.eval(), inputs, ("out",), {**axes, "out": AXES})


def by_dynamo(made: Component, opset: int, _: Path) -> ir.Model:
    with torch.no_grad():
        program = torch.onnx.export(made.module, tuple(made.example_inputs.values()), dynamo=True, opset_version=opset, verbose=False,
                                    input_names=list(made.example_inputs))  # fmt: skip
    assert program is not None
    return program.model


def by_torchscript(made: Component, opset: int, folder: Path) -> ir.Model:
    with torch.no_grad():
        torch.onnx.export(made.module, tuple(made.example_inputs.values()), folder / "model.onnx", dynamo=False, opset_version=opset,
                          input_names=list(made.example_inputs), output_names=["out"], dynamic_axes=made.dynamic_axes)  # fmt: skip
    return ir.load(folder / "model.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "exporter", "opset"),
    [
        ("unet", lambda made, *_: trace(made, dynamic=True), 20),  # as this project exports
        ("unet", by_torchscript, 14),  # as optimum does
        ("decoder", by_dynamo, 21),
        ("decoder", by_torchscript, 17),
        ("encoder", lambda made, *_: trace(made, dynamic=False), 20),
    ],
    ids=lambda value: value.__name__.strip("<>") if callable(value) else str(value),
)
def test_every_site_of_a_real_export_is_fused(
    ops_library: Path, tmp_path: Path, name: str, exporter: Callable[..., ir.Model], opset: int
) -> None:
    made = component(name)
    model = exporter(made, opset, tmp_path)
    assert model.opset_imports[""] == opset
    steps = {step.name: step for step in run(model, for_target("cpu"))}
    assert steps["fuse group norm"].refused == ()
    assert Counter(each.op_type for each in model.graph if each.op_type in OPS) == COUNTS[name]
    assert {function.name for function in model.functions.values()} >= set(OPS)

    with torch.no_grad():
        expected = made.module(*made.example_inputs.values()).double().numpy()
    feeds = {key: value.numpy() for key, value in made.example_inputs.items()}
    for library in (None, ops_library):  # one file, with the kernels and without
        (got,) = session(model, library).run(None, feeds)
        assert 10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum()) >= 90
