"""Linear, LinearAdd and LinearGeglu: the rule, the packed weights, the bodies and the kernels, against float64."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from onnx.reference import ReferenceEvaluator

from export.component import Component
from export.trace import trace
from graph_passes.ops.gelu import FUSE_GELU
from graph_passes.ops.linear import fuse_linear, pack
from graph_passes.passes.attach_bodies import attach_bodies
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.pipelines import PORTABLE
from graph_passes.step import run

OPS = ("Linear", "LinearAdd", "LinearGeglu")
ISAS = ("portable", "avx2", "avx512", "avx512bf16", "neon")
PRECISIONS = {"fp32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16}
SHAPES = [  # of the input, and the columns of the weights; LinearGeglu takes multiples of 32
    ((1, 1), 1),
    ((3, 7), 20),
    ((2, 3, 16), 64),
    ((2, 2, 5, 33), 96),
    ((1, 77, 64), 160),
    ((0, 8), 32),
    ((1, 4, 1283), 64),  # a depth of two blocks, and odd
    ((1, 300, 32), 64),  # rows of two blocks
]


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    if array.dtype == np.float32:
        return onnx.numpy_helper.from_array(array, name)
    return onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, array.shape, array.view(np.uint16).tobytes(), raw=True)


def node(
    op_type: str, shape: tuple[Any, ...] | None, weights: np.ndarray, channels: tuple[int, int], opset: int = 20, **changed: Any
) -> onnx.ModelProto:
    """A model of one custom op with its body, its packed weights an initializer; strings in `shape` are dynamic dimensions."""
    residual = None if shape is None else (*shape[:-1], channels[1])
    ports = [("x", shape), ("bias", None), *([("residual", residual)] if op_type == "LinearAdd" else [])]
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name, size in ports]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    attributes = {"channels_in": channels[0], "channels_out": channels[1]} | changed
    names = ["x", "weights", "bias", *(["residual"] if op_type == "LinearAdd" else [])]
    made = onnx.helper.make_node(op_type, names, ["y"], domain="handheld", **attributes)
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("handheld", 1)]
    graph = onnx.helper.make_graph([made], "g", inputs, outputs, initializer=[tensor("weights", weights)])
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10))
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


def operands(op_type: str, shape: tuple[int, ...], columns: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The matrix and what is fed."""
    generator = np.random.default_rng(zlib.crc32(repr((op_type, shape, columns)).encode()))
    matrix = (generator.normal(0, 1, (shape[-1], columns)) / math.sqrt(shape[-1])).astype(np.float32)
    feeds = {"x": generator.normal(0.1, 1, shape).astype(np.float32), "bias": generator.normal(0, 1, columns).astype(np.float32)}
    if op_type == "LinearAdd":
        feeds["residual"] = generator.normal(0, 1, (*shape[:-1], columns)).astype(np.float32)
    return matrix, feeds


def oracle(op_type: str, matrix: np.ndarray, feeds: dict[str, np.ndarray], rounds: bool) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the error that runtime/ops/linear/linear.h allows a kernel, which may round its activations to bfloat16."""
    x, bias, residual = (feeds.get(name, np.zeros(1)).astype(np.float64) for name in ("x", "bias", "residual"))
    wide = matrix.astype(np.float64)
    y, sums = x @ wide + bias + residual, np.abs(x) @ np.abs(wide)
    allowed = (matrix.shape[0] + 4) * 2.0**-24 * (sums + np.abs(bias) + np.abs(residual)) + (2.0**-8 * sums if rounds else 0)
    if op_type != "LinearGeglu":
        return y, allowed
    (value, gate), (of_value, of_gate) = np.split(y, 2, axis=-1), np.split(allowed, 2, axis=-1)
    gelu = gate * torch.special.erfc(torch.from_numpy(-gate * math.sqrt(0.5))).numpy() / 2
    of_gelu = 1.13 * of_gate + (4 + gate**2 / 3) * 2.0**-23 * np.abs(gelu)  # the slope of GELU is at most 1.13
    return value * gelu, np.abs(value) * of_gelu + of_value * (np.abs(gelu) + of_gelu) + 1e-37


def stored(matrix: np.ndarray, precision: str) -> np.ndarray:
    """The matrix with the numbers that a package has."""
    return matrix if precision == "fp32" else matrix.astype(ml_dtypes.bfloat16).astype(np.float32)


def taken(op_type: str) -> list[tuple[tuple[int, ...], int]]:
    return [(shape, columns) for shape, columns in SHAPES if op_type != "LinearGeglu" or columns % 32 == 0]


def hold(got: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> None:
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= allowed).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 16), (4, 17), (33, 40)])
def test_weights_are_packed_in_panels_of_16_columns(rows: int, columns: int, precision: str) -> None:
    matrix = np.random.default_rng(3).normal(size=(rows, columns)).astype(np.float32)
    pair = 1 if precision == "fp32" else 2
    packed = pack(matrix, PRECISIONS[precision])
    assert packed.shape == (-(-columns // 16), -(-rows // pair), 16, pair)
    assert packed.flags.c_contiguous
    for (panel, step, lane, parity), number in np.ndenumerate(packed.astype(np.float32)):
        row, column = pair * step + parity, 16 * panel + lane
        inside = row < rows and column < columns
        assert number == (stored(matrix, precision)[row, column] if inside else 0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_a_linear_layer(op_type: str, precision: str) -> None:
    for shape, columns in taken(op_type):
        matrix, feeds = operands(op_type, shape, columns)
        model = node(op_type, shape, pack(matrix, PRECISIONS[precision]), matrix.shape)
        expected, allowed = oracle(op_type, stored(matrix, precision), feeds, rounds=False)
        allowed = allowed + 4 * 2.0**-23 * (np.abs(expected) + 8)  # a body's GELU forms 1 + erf
        hold(session(model, None).run(None, feeds)[0], expected, allowed)
        if expected.size <= 1000 and precision == "fp32":  # the reference evaluates erf in Python, and casts no bfloat16 tensor
            hold(ReferenceEvaluator(model).run(None, feeds)[0], expected, allowed)


@pytest.mark.parametrize("opset", [14, 17, 18, 20, 21, 23])
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_valid_at_every_opset(op_type: str, opset: int) -> None:
    matrix, feeds = operands(op_type, (2, 5, 12), 32)
    model = node(op_type, ("N", "T", 12), pack(matrix, ir.DataType.FLOAT), matrix.shape, opset)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    expected, allowed = oracle(op_type, matrix, feeds, rounds=False)
    hold(session(model, None).run(None, feeds)[0], expected, 4 * allowed)


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_is_a_linear_layer(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDHELD_ISA", isa)
    for op_type in OPS:
        for precision, dtype in PRECISIONS.items():
            for shape, columns in taken(op_type):
                matrix, feeds = operands(op_type, shape, columns)
                model = node(op_type, None, pack(matrix, dtype), matrix.shape)
                try:
                    kernel = session(model, ops_library)
                except Exception as refusal:
                    assert f"HANDHELD_ISA is '{isa}', and this machine has kernels for: portable" in str(refusal)  # noqa: PT017
                    return
                rounds = isa == "avx512bf16" and precision == "bf16"
                hold(kernel.run(None, feeds)[0], *oracle(op_type, stored(matrix, precision), feeds, rounds))


@pytest.mark.parametrize("op_type", OPS)
def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(
    ops_library: Path, op_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, feeds = operands(op_type, (2, 5, 12), 32)
    model = node(op_type, ("N", "T", 12), pack(matrix, ir.DataType.FLOAT), matrix.shape)
    expected, allowed = oracle(op_type, matrix, feeds, rounds=False)
    for library in (ops_library, None):
        hold(session(model, library).run(None, feeds)[0], expected, 4 * allowed)
    monkeypatch.setenv("HANDHELD_ISA", "none")  # refused where there is a kernel, and only there
    session(model, None)
    with pytest.raises(Exception, match="HANDHELD_ISA is 'none'"):
        session(model, ops_library)


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({"x": (2, 11)}, r"LinearAdd: the input has shape \[2, 11\], and must be \[..., 12\]"),
        ({"x": ()}, r"LinearAdd: the input has shape \[\], and must be \[..., 12\]"),
        ({"bias": (16,)}, r"LinearAdd: the shape of the bias is \[16\], and must be \[32\]"),
        ({"residual": (32,)}, r"LinearAdd: the shape of the residual is \[32\], and must be \[2, 32\]"),
        ({"residual": (3, 32)}, r"LinearAdd: the shape of the residual is \[3, 32\], and must be \[2, 32\]"),
    ],
)
def test_the_kernel_refuses_shapes_with_a_sentence(ops_library: Path, feeds: dict[str, tuple[int, ...]], sentence: str) -> None:
    matrix, _ = operands("LinearAdd", (2, 12), 32)
    model = node("LinearAdd", None, pack(matrix, ir.DataType.FLOAT), matrix.shape)
    del model.functions[:]
    kernel = session(model, ops_library)
    good = {"x": (2, 12), "bias": (32,), "residual": (2, 32)}
    with pytest.raises(Exception, match=sentence):
        kernel.run(None, {name: np.ones(size, np.float32) for name, size in {**good, **feeds}.items()})
    assert kernel.run(None, {name: np.ones(size, np.float32) for name, size in good.items()})[0].shape == (2, 32)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (np.zeros((2, 12, 16), np.float32), r"Linear: the shape of the weights is \[2, 12, 16\], and must be \[2, 12, 16, 1\]"),
        (np.zeros((1, 12, 16, 1), np.float32), r"Linear: the shape of the weights is \[1, 12, 16, 1\], and must be \[2, 12, 16, 1\]"),
        (
            np.zeros((2, 12, 16, 1), ml_dtypes.bfloat16),
            r"Linear: the shape of the weights is \[2, 12, 16, 1\], and must be \[2, 6, 16, 2\]",
        ),
        (np.zeros((2, 12, 16, 1), np.float16), "Linear: the weights are neither float32 nor bfloat16"),
    ],
)
def test_the_kernel_refuses_weights_with_a_sentence(ops_library: Path, weights: np.ndarray, sentence: str) -> None:
    as_singles = node("Linear", (2, 12), weights if weights.dtype != np.float16 else weights.astype(np.float32), (12, 32))
    if weights.dtype == np.float16:
        as_singles.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
    del as_singles.functions[:]
    with pytest.raises(Exception, match=sentence):
        session(as_singles, ops_library).run(None, {"x": np.ones((2, 12), np.float32), "bias": np.ones(32, np.float32)})


@pytest.mark.parametrize(
    ("op_type", "changed", "sentence"),
    [
        ("Linear", {"channels_out": 0}, "Linear: the attribute 'channels_out' must be 1 or more, and is 0"),
        ("Linear", {"channels_in": 0}, "Linear: the attribute 'channels_in' must be 1 or more, and is 0"),
        ("Linear", {"channels_in": 2.5}, "Linear: the attribute 'channels_in' is missing or is not an integer"),
        ("LinearGeglu", {"channels_out": 48}, "LinearGeglu: the attribute 'channels_out' must be a multiple of 32, and is 48"),
    ],
)
def test_the_kernel_refuses_attributes_with_a_sentence(ops_library: Path, op_type: str, changed: dict[str, Any], sentence: str) -> None:
    model = node(op_type, (2, 12), np.zeros((2, 12, 16, 1), np.float32), (12, 32), **changed)
    del model.functions[:]
    with pytest.raises(Exception, match=sentence):
        session(model, ops_library)


@pytest.mark.parametrize(
    ("op_type", "shape", "inferred"),
    [("Linear", ("N", 5, 12), ["N", 5, 32]), ("LinearGeglu", ("N", 5, 12), ["N", 5, 16]), ("LinearAdd", None, [])],
)
def test_the_kernel_infers_its_shape(ops_library: Path, op_type: str, shape: tuple[Any, ...] | None, inferred: list[Any]) -> None:
    matrix, feeds = operands(op_type, (2, 5, 12), 32)
    model = node(op_type, shape, pack(matrix, ir.DataType.FLOAT), matrix.shape)
    del model.functions[:]
    kernel = session(model, ops_library)
    assert kernel.get_outputs()[0].shape == inferred
    assert kernel.run(None, feeds)[0].shape == (2, 5, 16 if op_type == "LinearGeglu" else 32)


NUMBERS = "float[8, 32] w, float[32, 8] turned, float[32] b, float[1, 32] flat, float[8, 32] v"


def graph(body: str, x: str = "float[N, T, 8] x", constants: str = NUMBERS, outputs: str = "y") -> ir.Model:
    """A model in ONNX's text form, with seeded numbers for its constants."""
    ports = ", ".join(f"float[N, T, M] {name}" for name in outputs.split())
    model = ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 20]> g ({x}, {constants}) => ({ports}) {{ {body} }}')
    for value in model.graph.outputs:
        value.shape = None
    generator = np.random.default_rng(7)
    for value in list(model.graph.inputs)[1:]:
        assert value.shape is not None
        assert value.dtype is not None
        model.graph.inputs.remove(value)
        if value.uses():
            value.const_value = ir.tensor(generator.normal(size=value.shape.numpy()).astype(value.dtype.numpy()), name=value.name)
            model.graph.register_initializer(value)
    run(model, (LIFT_CONSTANTS, INFER_SHAPES))
    return model


def fused(model: ir.Model, precision: str = "fp32") -> list[str]:
    """Fuses, holds that the graph computes what it did, and returns the types of its nodes."""
    before = ir.from_proto(ir.to_proto(model))
    _, linear = run(model, (FUSE_GELU, fuse_linear(precision)))
    assert (linear.name, linear.refused) == ("fuse linear", ())
    kinds = [each.op_type for each in model.graph]
    attach_bodies(model)
    generator = np.random.default_rng(5)
    feeds = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        feeds[value.name] = generator.normal(size=[{"N": 2, "T": 3}.get(str(size), size) for size in value.shape]).astype(np.float32)
    tolerance = 1e-5 if precision == "fp32" else 2.0**-8
    for expected, got in zip(session(before, None).run(None, feeds), session(model, None).run(None, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    return kinds


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        ("y = MatMul(x, w)", ["Linear"]),
        ("m = MatMul(x, w) y = Add(m, b)", ["Linear"]),
        ("m = MatMul(x, w) y = Add(b, m)", ["Linear"]),
        ("m = MatMul(x, w) y = Add(m, flat)", ["Linear", "Add"]),  # no bias of one value per column, in this form
        ("r = MatMul(x, v) m = MatMul(x, w) a = Add(m, b) y = Add(a, r)", ["Linear", "LinearAdd"]),
        ("r = MatMul(x, v) m = MatMul(x, w) a = Add(m, b) y = Add(r, a)", ["Linear", "LinearAdd"]),
        ("m = MatMul(x, w) a = Add(m, b) y = Add(a, a)", ["Linear", "Add"]),
        ("m = MatMul(x, w) h = Add(m, b) s, t = Split<axis: int = -1, num_outputs: int = 2>(h) g = Gelu(t) y = Mul(s, g)", ["LinearGeglu"]),
    ],
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_rule_takes_what_follows(body: str, kinds: list[str], precision: str) -> None:
    assert fused(graph(body), precision) == kinds


@pytest.mark.parametrize(
    "body", ["y = Gemm(x, w, b)", "y = Gemm<transB: int = 1>(x, turned, b)", "m = Gemm<transB: int = 1>(x, turned) y = Neg(m)"]
)
def test_the_rule_takes_gemm(body: str) -> None:
    assert fused(graph(body, x="float[N, 8] x"))[0] == "Linear"


def test_what_something_else_reads_stays() -> None:
    assert fused(graph("m = MatMul(x, w) y = Add(m, b) z = Neg(m)", outputs="y z")) == ["Linear", "Add", "Neg"]


def test_no_weight_is_read_before_it_is_written() -> None:
    model = graph("y = MatMul(x, w)")

    def unread() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model.graph.initializers["w"].const_value = ir.LazyTensor(unread, ir.DataType.FLOAT, ir.Shape([8, 32]))
    (step,) = run(model, (fuse_linear("bf16"),))
    assert step.applied == 1
    packed = model.graph[0].inputs[1]
    assert packed is not None
    assert packed.const_value is not None
    assert (packed.name, packed.dtype, list(packed.const_value.shape)) == ("w_packed", ir.DataType.BFLOAT16, [2, 4, 16, 2])
    with pytest.raises(AssertionError, match="a weight was read"):
        packed.const_value.numpy()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: graph("y = MatMul(x, w)", constants="float[2, 8, 32] w"), "the weight is no matrix"),
        (
            lambda: graph("m = MatMul(x, w) n = Neg(x) o = MatMul(n, w) y = Add(m, o)"),
            "the weight is read by another node too, and would be stored twice",
        ),
        (
            lambda: graph("y = Gemm<alpha: float = 0.5>(x, w, b)", x="float[N, 8] x"),
            "it transposes its input or scales a term",
        ),
        (lambda: graph("y = Gemm<transA: int = 1>(x, w, b)", x="float[8, N] x"), "it transposes its input or scales a term"),
        (
            lambda: graph("y = Gemm(x, w, one)", x="float[N, 8] x", constants=NUMBERS + ", float[1] one"),
            "what it adds is not known to be a bias, one value per column",
        ),
        (
            lambda: graph("h = Cast<to: int = 10>(x) z = MatMul(h, k) y = Cast<to: int = 1>(z)", constants="float16[8, 32] k"),
            "its operands are FLOAT16 and FLOAT16, and the kernel takes FLOAT",
        ),
    ],
)  # fmt: skip
def test_a_site_that_is_left_has_its_reason(model: Callable[[], ir.Model], reason: str) -> None:
    made = model()
    (step,) = run(made, (fuse_linear("fp32"),))
    assert step.applied == 0
    assert {sentence.partition("': ")[2] for sentence in step.refused} == {reason}


def test_products_of_two_activations_are_no_linear_layers() -> None:
    model = graph("t = Transpose<perm: ints = [0, 2, 1]>(x) y = MatMul(x, t)")
    (step,) = run(model, (fuse_linear("fp32"),))
    assert (step.applied, step.refused) == (0, ())


class Block(torch.nn.Module):
    """A transformer block of the U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.block = BasicTransformerBlock(32, 2, 16, cross_attention_dim=24, activation_fn="geglu")

    def forward(self, states: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.block(states, encoder_hidden_states=context)


def by_torchscript(made: Component, folder: Path) -> ir.Model:
    with torch.no_grad():
        torch.onnx.export(made.module, tuple(made.example_inputs.values()), folder / "model.onnx", dynamo=False, opset_version=17,
                          input_names=list(made.example_inputs), output_names=["out"], dynamic_axes=made.dynamic_axes)  # fmt: skip
    return ir.load(folder / "model.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("exporter", "precision", "counts"),
    [
        # q, k, v of two attentions; to_out and the feed-forward's second layer end with the sum that goes around them
        ("dynamic", "fp32", {"Linear": 6, "LinearAdd": 3, "LinearGeglu": 1}),
        ("static", "bf16", {"Linear": 6, "LinearAdd": 3, "LinearGeglu": 1}),
        ("torchscript", "fp32", {"Linear": 9, "LinearGeglu": 1}),  # whose shapes don't say that a sum is of equal ones
    ],
)
def test_every_site_of_a_real_export_is_fused(
    ops_library: Path, tmp_path: Path, exporter: str, precision: str, counts: dict[str, int]
) -> None:
    torch.manual_seed(11)
    inputs = {"states": torch.randn(2, 15, 32), "context": torch.randn(2, 7, 24)}
    axes = {name: {0: "batch_size", 1: f"{name}_length"} for name in inputs}
    made = Component("block", Block().eval(), inputs, ("out",), {**axes, "out": axes["states"]})
    model = by_torchscript(made, tmp_path) if exporter == "torchscript" else trace(made, dynamic=exporter == "dynamic")
    run(model, PORTABLE)
    _, linear = run(model, (FUSE_GELU, fuse_linear(precision)))
    assert linear.refused == ()
    assert Counter(each.op_type for each in model.graph if each.domain == "handheld") == counts
    assert fuse_linear("fp32").refused(model) == []
    attach_bodies(model)

    with torch.no_grad():
        expected = made.module(*inputs.values()).double().numpy()
    feeds = {key: value.numpy() for key, value in inputs.items()}
    for library in (None, ops_library):  # one file, with the kernels and without
        (got,) = session(model, library).run(None, feeds)
        assert 10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum()) >= (90 if precision == "fp32" else 40)
