"""WinogradConv, WinogradConvAdd and WinogradConvSilu: the weights, the bodies, the kernels and the rule, against float64."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from graph_passes.costs import Algorithm
from graph_passes.ops.winograd_conv import TILES, fuse_winograd, pack, packed_shape, refused_convolutions, sites, weight_transform
from graph_passes.passes.attach_bodies import ATTACH_BODIES, attach_bodies
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.passes.winograd import ERRORS, all_with
from graph_passes.pipelines import PORTABLE
from graph_passes.step import run

OPS = ("WinogradConv", "WinogradConvAdd", "WinogradConvSilu")
ISAS = ("portable", "avx2", "avx512", "avx512bf16", "neon")
TYPES = {"fp32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16}
UNIT = 2.0**-23
SHAPES = [  # of the input, and the channels that come out
    ((1, 1, 1, 1), 1),
    ((2, 3, 5, 7), 9),
    ((1, 4, 8, 8), 4),
    ((1, 5, 1, 64), 8),
    ((1, 64, 33, 31), 72),
    ((2, 40, 16, 12), 24),
    ((1, 6, 0, 4), 8),  # nothing to do
]


def model_of(
    op_type: str,
    x: tuple[Any, ...],
    weights: np.ndarray,
    tile: int,
    dtype: ir.DataType = ir.DataType.FLOAT,
    opset: int = 20,
    change: dict[str, int | None] | None = None,
) -> onnx.ModelProto:
    """A model of one operator with its body; strings in `x` are dynamic dimensions, `change` replaces attributes (None: leaves out)."""
    y = (x[0], len(weights), *x[2:])
    helper = onnx.helper
    names = ["x", "u", "bias", *(["residual"] if op_type.endswith("Add") else [])]
    shapes = {"x": x, "bias": ["B"], "residual": y}
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[name]) for name in names if name != "u"]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, y)]
    attributes = {key: value for key, value in {"tile": tile, "channels_out": len(weights), **(change or {})}.items() if value is not None}
    node = helper.make_node(op_type, names, ["y"], domain="handheld", **attributes)
    u = ir.to_proto(ir.Tensor(pack(weights, tile, dtype), dtype=dtype, name="u"))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("handheld", 1)]
    made = helper.make_model(helper.make_graph([node], "g", inputs, outputs, [u]), opset_imports=imports, ir_version=10)
    model = ir.from_proto(made)
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


def operands(op_type: str, shape: tuple[int, ...], channels_out: int, mean: float = 0.0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Weights [O, C, 3, 3], and the other inputs by name."""
    rng = np.random.default_rng(zlib.crc32(repr((shape, channels_out, mean)).encode()))
    weights = rng.normal(size=(channels_out, shape[1], 3, 3)).astype(np.float32)
    feeds = {"x": rng.normal(mean, 1, shape), "bias": rng.normal(size=channels_out)}
    if op_type.endswith("Add"):
        feeds["residual"] = rng.normal(size=(shape[0], channels_out, *shape[2:]))
    return weights, {name: array.astype(np.float32) for name, array in feeds.items()}


def oracle(op_type: str, weights: np.ndarray, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The operator by its definition, in float64."""
    x = torch.from_numpy(feeds["x"]).double()
    y = torch.nn.functional.conv2d(x, torch.from_numpy(weights).double(), padding=1).numpy() if x.numel() else 0 * feeds["x"][:, :1]
    y = y + feeds["bias"].astype(np.float64).reshape(-1, 1, 1)
    if op_type == "WinogradConvAdd":
        y = y + feeds["residual"]
    return y / (1 + np.exp(-y)) if op_type == "WinogradConvSilu" else y


def hold(got: np.ndarray, op_type: str, weights: np.ndarray, feeds: dict[str, np.ndarray], error: float) -> None:
    """`error` is that of the sums, relative to what sums of so many random products amount to; a single one may be ten times off.

    Bias, residual and SiLU round the result itself: a few units in its last place.
    """
    expected = oracle(op_type, weights, feeds)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    if got.size:
        size = np.sqrt(weights[0].size * np.square(feeds["x"], dtype=np.float64).mean() * np.square(weights, dtype=np.float64).mean())
        assert np.sqrt(np.square(got - expected).mean()) <= 1.5 * error * size + 2 * UNIT * (1 + np.abs(expected).max())
        assert (np.abs(got - expected) <= 10 * error * size + 8 * UNIT * (1 + np.abs(expected))).all()


# --- the weights ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES.values())
@pytest.mark.parametrize("tile", TILES)
def test_packed_weights_are_g_w_g_transposed_in_the_order_of_the_kernel(tile: int, dtype: ir.DataType) -> None:
    weights = np.random.default_rng(0).normal(size=(11, 5, 3, 3)).astype(np.float32)
    u, transform = pack(weights, tile, dtype), weight_transform(tile)
    pair = 2 if dtype == ir.DataType.BFLOAT16 else 1
    assert u.dtype == dtype.numpy()
    assert u.shape == packed_shape(11, 5, tile, dtype) == ((2, (tile + 2) ** 2, 5, 8), (2, (tile + 2) ** 2, 3, 8, 2))[pair - 1]
    u = u.reshape(2, (tile + 2) ** 2, -1, 8, pair)
    for channel_out in range(16):
        for channel_in in range(6 if pair == 2 else 5):
            got = u[channel_out // 8, :, channel_in // pair, channel_out % 8, channel_in % pair].reshape(tile + 2, tile + 2)
            inside = channel_out < 11 and channel_in < 5
            exact = transform @ weights[channel_out, channel_in].astype(np.float64) @ transform.T if inside else np.zeros((tile + 2,) * 2)
            np.testing.assert_array_equal(got, exact.astype(np.float32).astype(u.dtype) if pair == 1 else exact.astype(u.dtype))


@pytest.mark.parametrize("tile", TILES)
def test_the_transform_multiplies_polynomials(tile: int) -> None:
    """Cook and Toom: the product of a filter of 3 and a signal of `tile` taps is what their values at the points say."""
    points = tile + 1
    filter_, signal = np.array([1.5, -2.0, 0.25]), np.arange(1.0, tile + 1)
    values = (weight_transform(tile) @ filter_)[:points]
    where = {2: [0, 1, -1], 4: [0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)], 6: [0, 0.5, -0.5, 1, -1, 2, -2]}[tile]
    for index, point in enumerate(where):
        scale = np.prod([point - other for other in where if other != point])
        np.testing.assert_allclose(values[index] * scale, np.polyval(filter_[::-1], point), rtol=1e-14, atol=1e-14)
    assert np.polymul(filter_[::-1], signal[::-1]).size == tile + 2  # as many values as points, infinity included


# --- the bodies ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "channels_out"), SHAPES[:4])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_the_convolution(op_type: str, tile: int, shape: tuple[int, ...], channels_out: int) -> None:
    weights, feeds = operands(op_type, shape, channels_out)
    model = model_of(op_type, shape, weights, tile)
    # the weights come back rounded by the transform's condition, a few units in the last place
    for got in (ReferenceEvaluator(model).run(None, feeds)[0], session(model, None).run(None, feeds)[0]):
        hold(got, op_type, weights, feeds, 8 * UNIT)
    if shape[1] % 2 == 0:
        half = model_of(op_type, shape, weights, tile, ir.DataType.BFLOAT16)
        hold(session(half, None).run(None, feeds)[0], op_type, weights, feeds, 2.0**-8)


@pytest.mark.parametrize("opset", [14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
def test_the_bodies_are_valid_at_every_opset_and_infer_shapes(opset: int) -> None:
    for op_type in OPS:
        weights, feeds = operands(op_type, (2, 6, 5, 7), 9)
        model = model_of(op_type, ("N", 6, "H", "W"), weights, 4, opset=opset)
        onnx.checker.check_model(model, full_check=True)
        hold(session(model, None).run(None, feeds)[0], op_type, weights, feeds, 8 * UNIT)
        model.graph.output[0].type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output[0].type.tensor_type.shape
        assert [size.dim_param or size.dim_value for size in inferred.dim][:2] == ["N", 9]


def test_without_the_library_a_plain_convolution_is_left(tmp_path: Path) -> None:
    """What the body does to the weights is done once, when the session is made."""
    weights, feeds = operands("WinogradConv", (1, 6, 5, 7), 9)
    proto = model_of("WinogradConv", ("N", 6, "H", "W"), weights, 4)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(feeds["bias"], "bias"))
    del proto.graph.input[1]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["Conv"]


# --- the kernels ---------------------------------------------------------------------------------------------------------------------


def available(library: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The instruction sets of this machine, from the library's own sentence."""
    monkeypatch.setenv("HANDHELD_ISA", "none")
    weights, _ = operands("WinogradConv", (1, 2, 3, 3), 2)
    with pytest.raises(Exception, match="this machine has kernels for: ") as refusal:
        session(model_of("WinogradConv", (1, 2, 3, 3), weights, 2), library)
    return str(refusal.value).rpartition("for: ")[2].strip().split(", ")


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_is_the_convolution(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa not in available(ops_library, monkeypatch):
        monkeypatch.setenv("HANDHELD_ISA", isa)
        weights, _ = operands("WinogradConv", (1, 2, 3, 3), 2)
        with pytest.raises(Exception, match=f"HANDHELD_ISA is '{isa}', and this machine has kernels for: portable"):
            session(model_of("WinogradConv", (1, 2, 3, 3), weights, 2), ops_library)
        return
    monkeypatch.setenv("HANDHELD_ISA", isa)
    for shape, channels_out in SHAPES:
        for precision, dtype in TYPES.items():
            for tile in TILES:
                error = ERRORS.get(Algorithm(tile, precision), 5e-2)
                for op_type in OPS:
                    weights, feeds = operands(op_type, shape, channels_out)
                    kernel = session(model_of(op_type, ("N", shape[1], "H", "W"), weights, tile, dtype), ops_library)
                    hold(kernel.run(None, feeds)[0], op_type, weights, feeds, error)


@pytest.mark.parametrize("precision", TYPES)
def test_a_large_mean_costs_no_more_than_its_size(ops_library: Path, precision: str) -> None:
    for tile in (2, 4):
        weights, feeds = operands("WinogradConv", (1, 64, 20, 20), 16, mean=1e3)
        kernel = session(model_of("WinogradConv", (1, 64, 20, 20), weights, tile, TYPES[precision]), ops_library)
        hold(kernel.run(None, feeds)[0], "WinogradConv", weights, feeds, 2 * ERRORS[Algorithm(tile, precision)])


@pytest.mark.parametrize("algorithm", ERRORS, ids=str)
def test_the_errors_that_layers_are_chosen_by_are_what_is_measured(ops_library: Path, algorithm: Algorithm) -> None:
    for channels_in, channels_out, side in ((320, 64, 32), (1280, 32, 16), (512, 32, 24)):
        weights, feeds = operands("WinogradConv", (1, channels_in, side, side), channels_out)
        feeds["bias"][:] = 0
        expected = oracle("WinogradConv", weights, feeds)
        model = model_of("WinogradConv", feeds["x"].shape, weights, algorithm.tile, TYPES[algorithm.precision])
        got = session(model, ops_library).run(None, feeds)[0]
        error = np.sqrt(np.square(got - expected).mean() / np.square(expected).mean())
        assert 0.75 * ERRORS[algorithm] <= error <= ERRORS[algorithm]


def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, feeds = operands("WinogradConvAdd", (2, 6, 9, 5), 10)
    model = model_of("WinogradConvAdd", ("N", 6, "H", "W"), weights, 4)
    for library in (ops_library, None):
        hold(session(model, library).run(None, feeds)[0], "WinogradConvAdd", weights, feeds, ERRORS[Algorithm(4, "fp32")])
    monkeypatch.setenv("HANDHELD_ISA", "none")  # refused where there is a kernel, and only there
    session(model, None)
    with pytest.raises(Exception, match="HANDHELD_ISA is 'none'"):
        session(model, ops_library)


def test_runs_of_one_session_at_the_same_time_do_not_meet(ops_library: Path) -> None:
    weights, feeds = operands("WinogradConv", (2, 24, 40, 40), 24)
    kernel = session(model_of("WinogradConv", ("N", 24, "H", "W"), weights, 4), ops_library)
    inputs = [{**feeds, "x": feeds["x"] + shift} for shift in range(4)]
    alone = [kernel.run(None, each)[0] for each in inputs]
    with ThreadPoolExecutor(len(inputs)) as pool:
        together = list(pool.map(lambda each: kernel.run(None, each)[0], inputs * 8))
    for index, got in enumerate(together):
        np.testing.assert_array_equal(got, alone[index % len(inputs)])


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"x": (1, 5, 4, 4)}, r"the weights have shape \[2, 36, 6, 8\], and 5 to 9 channels in tiles of 4 take \[2, 36, 5, 8\]"),
        ({"bias": (8,)}, r"the bias has shape \[8\], and must have \[9\]"),
        ({"residual": (1, 9, 1, 1)}, r"the residual has shape \[1, 9, 1, 1\], and must have \[1, 9, 4, 4\]"),
    ],
)  # fmt: skip
def test_the_kernel_refuses_shapes_with_a_sentence(ops_library: Path, shapes: dict[str, tuple[int, ...]], sentence: str) -> None:
    weights, _ = operands("WinogradConvAdd", (1, 6, 4, 4), 9)
    kernel = session(model_of("WinogradConvAdd", ("N", "C", "H", "W"), weights, 4), ops_library)
    good = {"x": (1, 6, 4, 4), "bias": (9,), "residual": (1, 9, 4, 4)}
    with pytest.raises(Exception, match=f"WinogradConvAdd: {sentence}"):
        kernel.run(None, {name: np.ones(size, np.float32) for name, size in {**good, **shapes}.items()})
    kernel.run(None, {name: np.ones(size, np.float32) for name, size in good.items()})  # a refusal leaves the session as it was


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tile": None}, "WinogradConv: the attribute 'tile' is missing or is not an integer"),
        ({"tile": 3}, "WinogradConv: the attribute 'tile' must be 2, 4 or 6, and is 3"),
        ({"channels_out": None}, "WinogradConv: the attribute 'channels_out' is missing or is not an integer"),
        ({"channels_out": 0}, "WinogradConv: the attribute 'channels_out' must be 1 or more, and is 0"),
    ],
)
def test_the_kernel_refuses_attributes_with_a_sentence(ops_library: Path, change: dict[str, Any], sentence: str) -> None:
    weights, _ = operands("WinogradConv", (1, 6, 4, 4), 9)
    model = model_of("WinogradConv", (1, 6, 4, 4), weights, 4, change=change)
    del model.functions[:]
    with pytest.raises(Exception, match=sentence):
        session(model, ops_library)


@pytest.mark.parametrize(("x", "inferred"), [(("N", 6, 5, "W"), ["N", 9, 5, "W"]), (("N", 6, None, "W"), [])])
def test_the_kernel_says_the_shape_of_its_output(ops_library: Path, x: tuple[Any, ...], inferred: list[Any]) -> None:
    weights, _ = operands("WinogradConv", (1, 6, 5, 4), 9)
    model = model_of("WinogradConv", x, weights, 2)
    del model.functions[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert session(model, ops_library).get_outputs()[0].shape == inferred


# --- the rule ------------------------------------------------------------------------------------------------------------------------

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
    before = ir.from_proto(ir.to_proto(model))
    (step,) = run(model, (all_with(tile),))
    assert step.name == "fuse winograd convolutions"
    kinds = [node.op_type for node in model.graph]
    attach_bodies(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    sizes, feeds = {"N": 2, "H": 5, "W": 7}, {}
    for value in before.graph.inputs:
        rng = np.random.default_rng(zlib.crc32(value.name.encode()))
        shape = [size if isinstance(size, int) else sizes[size.value] for size in value.shape]
        feeds[value.name] = rng.normal(size=shape).astype(np.float32)
    for expected, got in zip(session(before, None).run(None, feeds), session(model, None).run(None, feeds), strict=True):
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


class Unet(torch.nn.Module):
    """SD's structure in small: 4 levels, 2 layers per block."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, cross_attention_dim=16,
                                         attention_head_dim=2, layers_per_block=2)  # fmt: skip

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        vae = AutoencoderKL(block_out_channels=(8, 8, 16, 16), norm_num_groups=4, layers_per_block=2,
                            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip
        self.decoder = vae.decoder

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.decoder(sample)


AXES = {0: "batch_size", 2: "height", 3: "width"}
COUNTS = {
    "unet": {"WinogradConv": 27, "WinogradConvAdd": 22},
    "unet-torchscript": {"WinogradConv": 49},  # the old exporter says of no residual how large it is
    "decoder": {"WinogradConv": 19, "WinogradConvAdd": 14},
}
STRIDE_2 = {"unet": 3, "decoder": 0}


def component(name: str) -> Component:
    torch.manual_seed(zlib.crc32(name.encode()))
    module: torch.nn.Module = Unet() if name == "unet" else Decoder()
    # the U-Net is traced at a size that it cannot halve three times: else torch takes its sizes for constants
    inputs = {"sample": torch.randn(2, 4, 12, 10) if name == "unet" else torch.randn(2, 4, 8, 8)}
    axes = {"sample": AXES}
    if name == "unet":
        inputs |= {"timestep": torch.tensor(5), "encoder_hidden_states": torch.randn(2, 7, 16)}
        axes |= {"encoder_hidden_states": {0: "batch_size", 1: "sequence_length"}}
    return Component(name, module.eval(), inputs, ("out",), {**axes, "out": AXES})


def by_torchscript(made: Component, folder: Path) -> ir.Model:
    with torch.no_grad():
        torch.onnx.export(made.module, tuple(made.example_inputs.values()), folder / "model.onnx", dynamo=False, opset_version=17,
                          input_names=list(made.example_inputs), output_names=["out"], dynamic_axes=made.dynamic_axes)  # fmt: skip
    return ir.load(folder / "model.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        ("unet", lambda made, _: trace(made, dynamic=True)),  # as this project exports
        ("unet-torchscript", by_torchscript),  # as optimum does
        ("decoder", lambda made, _: trace(made, dynamic=False)),
    ],
)
def test_every_site_of_a_real_export_is_found(
    ops_library: Path, tmp_path: Path, name: str, exporter: Callable[[Component, Path], ir.Model]
) -> None:
    made = component(name.partition("-")[0])
    model = exporter(made, tmp_path)
    steps = run(model, (*PORTABLE, all_with(4), ATTACH_BODIES))
    assert Counter(each.op_type for each in model.graph if each.domain == "handheld") == COUNTS[name]
    (refused,) = (step.refused for step in steps if step.name == "fuse winograd convolutions")
    assert len(refused) == STRIDE_2[made.name]
    assert all(sentence.endswith("its stride is 2x2, and the algorithm's is 1x1") for sentence in refused)
    with torch.no_grad():
        expected = made.module(*made.example_inputs.values()).double().numpy()
    feeds = {key: value.numpy() for key, value in made.example_inputs.items()}
    for library in (None, ops_library):  # one file, with the kernels and without
        (got,) = session(model, library).run(None, feeds)
        assert 10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum()) >= 90
