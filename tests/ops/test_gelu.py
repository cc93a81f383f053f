"""Gelu, QuickGelu and Geglu: the rules, the bodies and the kernels, against float64."""

from __future__ import annotations

import math
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
from diffusers import UNet2DConditionModel
from onnx.reference import ReferenceEvaluator
from transformers import CLIPTextConfig, CLIPTextModel

from export.component import Component
from export.trace import trace
from graph_passes.ops.gelu import FUSE_GELU
from graph_passes.passes.attach_bodies import attach_bodies
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.pipelines import for_target
from graph_passes.step import run

OPS = ("Gelu", "QuickGelu", "Geglu")
ISAS = ("portable", "avx2", "avx512", "avx512bf16", "neon")
UNIT = 2.0**-23
SHAPES = [(2,), (1, 1, 34), (3, 5, 14), (2, 77, 256), (4, 0, 6), (2, 3, 0), (1, 64, 2560)]


def node(op_type: str, shape: tuple[Any, ...] | None, opset: int = 20, dtype: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    """A model of one custom op with its body; strings in `shape` are dynamic dimensions."""
    inputs = [onnx.helper.make_tensor_value_info("x", dtype, shape)]
    outputs = [onnx.helper.make_tensor_value_info("y", dtype, None if shape is None else [f"y{axis}" for axis in range(len(shape))])]
    made = onnx.helper.make_node(op_type, ["x"], ["y"], domain="handheld")
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


def operand(shape: tuple[int, ...], deviation: float) -> np.ndarray:
    generator = np.random.default_rng(zlib.crc32(repr((shape, deviation)).encode()))
    return generator.normal(0, deviation, shape).astype(np.float32)


def oracle(op_type: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the error that runtime/ops/gelu/gelu.h allows a kernel."""
    wide = x.astype(np.float64)
    if op_type == "QuickGelu":
        y = wide / (1 + np.exp(np.minimum(-float(np.float32(1.702)) * wide, 700)))
        return y, (3 + np.abs(wide)) * UNIT * np.abs(y) + 2e-37
    value, gate = np.split(wide, 2, axis=-1) if op_type == "Geglu" else (np.ones_like(wide), wide)
    y = gate * (torch.special.erfc(torch.from_numpy(-gate * math.sqrt(0.5))).numpy() / 2)
    allowed = (3 + np.where(gate < 0, gate**2 / 3, 0)) * UNIT * np.abs(y) + 2.0**-148
    return value * y, np.abs(value) * allowed + (UNIT * np.abs(value * y) + 2.0**-148 if op_type == "Geglu" else 0)


def hold_body(got: np.ndarray, op_type: str, x: np.ndarray) -> None:
    """A body forms 1 + erf, whose error is relative to 1: so to |x|, times the value."""
    expected, allowed = oracle(op_type, x)
    value, gate = np.split(np.abs(x), 2, axis=-1) if op_type == "Geglu" else (1.0, np.abs(x))
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= 2 * allowed + 4 * UNIT * value * gate).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_the_function(op_type: str, shape: tuple[int, ...]) -> None:
    model, x = node(op_type, shape), operand(shape, 3)
    if x.size <= 1000:  # the reference evaluates erf in Python
        hold_body(ReferenceEvaluator(model).run(None, {"x": x})[0], op_type, x)
    hold_body(session(model, None).run(None, {"x": x})[0], op_type, x)


@pytest.mark.parametrize("opset", [14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_valid_at_every_opset_and_infers_shapes(op_type: str, opset: int) -> None:
    model, x = node(op_type, ("N", "T", 8), opset), operand((2, 3, 8), 2)
    onnx.checker.check_model(model, full_check=True)
    hold_body(session(model, None).run(None, {"x": x})[0], op_type, x)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output[0].type.tensor_type.shape
    sizes = [size.dim_param or size.dim_value for size in inferred.dim]
    # of a Slice whose end is computed only the rank is inferred; a graph keeps what it knew of the shape before the fusion
    assert len(sizes) == 3 if op_type == "Geglu" else sizes == ["N", "T", 8]


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_is_the_function(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDHELD_ISA", isa)
    for op_type in OPS:
        model = node(op_type, None)
        try:
            kernel = session(model, ops_library)
        except Exception as refusal:
            assert f"HANDHELD_ISA is '{isa}', and this machine has kernels for: portable" in str(refusal)  # noqa: PT017
            return
        for shape in SHAPES:
            for deviation in (0.1, 3.0, 30.0):
                x = operand(shape, deviation)
                expected, allowed = oracle(op_type, x)
                (got,) = kernel.run(None, {"x": x})
                assert got.shape == expected.shape
                assert (np.abs(got - expected) <= allowed).all()


@pytest.mark.parametrize("op_type", OPS)
def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(
    ops_library: Path, op_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = node(op_type, ("N", "T", 8)), operand((2, 5, 8), 2)
    kernel, body = (session(model, library).run(None, {"x": x})[0] for library in (ops_library, None))
    np.testing.assert_allclose(kernel, body, rtol=0, atol=16 * UNIT * 4 * np.abs(x).max())
    monkeypatch.setenv("HANDHELD_ISA", "none")  # refused where there is a kernel, and only there
    session(model, None)
    with pytest.raises(Exception, match="HANDHELD_ISA is 'none'"):
        session(model, ops_library)


@pytest.mark.parametrize(("shape", "text"), [((2, 3), "2, 3"), ((), "")])
def test_the_kernel_refuses_what_has_no_halves(ops_library: Path, shape: tuple[int, ...], text: str) -> None:
    model = node("Geglu", None)
    del model.functions[:]
    kernel = session(model, ops_library)
    sentence = rf"Geglu: the input has shape \[{text}\], and its last axis must hold the value and the gate, of equal size"
    with pytest.raises(Exception, match=sentence):
        kernel.run(None, {"x": np.ones(shape, np.float32)})
    assert kernel.run(None, {"x": np.zeros((1, 4), np.float32)})[0].shape == (1, 2)  # a refusal leaves the session as it was


def test_the_kernel_refuses_half_precision_with_a_sentence(ops_library: Path) -> None:
    model = node("Gelu", (2, 3), dtype=onnx.TensorProto.FLOAT16)
    del model.functions[:]
    with pytest.raises(Exception, match=r"Type 'tensor\(float16\)' of input parameter \(.*\) of operator \(Gelu\)"):
        session(model, ops_library)


@pytest.mark.parametrize(
    ("op_type", "shape", "inferred"),
    [("Gelu", ("N", 5, 8), ["N", 5, 8]), ("Geglu", ("N", 5, 8), ["N", 5, 4]), ("Geglu", ("N", 5, "C"), []), ("QuickGelu", None, [])],
)
def test_the_kernel_infers_its_shape(ops_library: Path, op_type: str, shape: tuple[Any, ...] | None, inferred: list[Any]) -> None:
    model = node(op_type, shape)
    del model.functions[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    kernel = session(model, ops_library)
    assert kernel.get_outputs()[0].shape == inferred
    assert kernel.run(None, {"x": operand((2, 5, 8), 1)})[0].shape == (2, 5, 4 if op_type == "Geglu" else 8)


def graph(body: str, constants: str = "", opset: int = 20, dtype: str = "float", outputs: str = "y") -> ir.Model:
    """A model in ONNX's text form, of h [N, T, 8]."""
    ports = ", ".join(f"{dtype}[N, T, M] {name}" for name in outputs.split())
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({dtype}[N, T, 8] h) => ({ports}) <{constants}> {{ {body} }}'
    model = ir.from_onnx_text(text)
    for value in model.graph.outputs:
        value.shape = None
    run(model, (LIFT_CONSTANTS, INFER_SHAPES))
    return model


NUMBERS = (
    "float root = {1.4142135}, float inverse = {0.70710677}, float one = {1}, float half = {0.5}, float two = {2}, float quick = {1.702}, "
    "int64[2] halves = {4, 4}, int64[1] zero = {0}, int64[1] middle = {4}, int64[1] rest = {9223372036854775807}, int64[1] last = {-1}"
)
SPLIT = {
    "Split by count": "v, x = Split<axis: int = -1, num_outputs: int = 2>(h)",
    "Split by sizes": "v, x = Split<axis: int = 2>(h, halves)",
    "Slice": "v = Slice(h, zero, middle, last) x = Slice(h, middle, rest, last)",
}
ERF = {
    "the new exporter's": "a = Div(x, root) e = Erf(a) s = Add(e, one) p = Mul(x, s) g = Mul(half, p)",
    "the old exporter's": "a = Div(x, root) e = Erf(a) s = Add(one, e) p = Mul(x, s) g = Mul(p, half)",
    "half of x": "a = Mul(inverse, x) e = Erf(a) s = Add(e, one) k = Mul(half, x) g = Mul(k, s)",
    "half of the distribution": "a = Mul(x, inverse) e = Erf(a) s = Add(e, one) p = Mul(s, half) g = Mul(x, p)",
    "x over two": "a = Div(x, root) e = Erf(a) s = Add(e, one) k = Div(x, two) g = Mul(s, k)",
    "the operator": "g = Gelu(x)",
}


def fused(model: ir.Model) -> list[str]:
    """Fuses, holds that the graph computes what it did, and returns the types of its nodes."""
    before = ir.from_proto(ir.to_proto(model))
    (step,) = run(model, (FUSE_GELU,))
    assert (step.name, step.refused) == ("fuse gelu", ())
    kinds = [each.op_type for each in model.graph]
    attach_bodies(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    h = operand((2, 3, 8), 2)
    for expected, got in zip(session(before, None).run(None, {"h": h}), session(model, None).run(None, {"h": h}), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=4 * UNIT * np.abs(h).max() ** 2)
    return kinds


@pytest.mark.parametrize("erf", ERF)
def test_the_rule_takes_gelu(erf: str) -> None:
    model = graph("x = Identity(h) " + ERF[erf] + " y = Neg(g)", NUMBERS)
    assert fused(model) == ["Identity", "Gelu", "Neg"]
    assert model.graph[1].domain == "handheld"


@pytest.mark.parametrize("split", SPLIT)
@pytest.mark.parametrize("erf", ERF)
def test_the_rule_takes_geglu(erf: str, split: str) -> None:
    for product in ("y = Mul(v, g)", "y = Mul(g, v)"):
        assert fused(graph(f"{SPLIT[split]} {ERF[erf]} {product}", NUMBERS)) == ["Geglu"]


@pytest.mark.parametrize("body", ["a = Mul(h, quick) s = Sigmoid(a) y = Mul(h, s)", "a = Mul(quick, h) s = Sigmoid(a) y = Mul(s, h)"])
def test_the_rule_takes_quick_gelu(body: str) -> None:
    assert fused(graph(body, NUMBERS)) == ["QuickGelu"]


@pytest.mark.parametrize(
    "body",
    [
        "x, v = Split<axis: int = -1, num_outputs: int = 2>(h) g = Gelu(x) y = Mul(v, g)",  # the gate comes first
        "v, x = Split<axis: int = -1, num_outputs: int = 2>(h) g = Gelu(x) y = Mul(x, g)",
        "v, x, w = Split<axis: int = -1>(h, thirds) g = Gelu(x) y = Mul(v, g)",
        "v, x = Split<axis: int = 0>(h, rows) g = Gelu(x) y = Mul(v, g)",
        "v = Slice(h, zero, middle, last) x = Slice(h, zero, middle, last) g = Gelu(x) y = Mul(v, g)",
        "x = Neg(h) v = Identity(h) g = Gelu(x) y = Mul(v, g)",
    ],
)
def test_what_is_no_geglu_is_a_gelu(body: str) -> None:
    model = graph(body, f"{NUMBERS}, int64[3] thirds = {{3, 3, 2}}, int64[2] rows = {{1, 1}}")
    assert "Gelu" in fused(model)
    assert "Mul" in [each.op_type for each in model.graph]


def test_a_gate_that_something_else_reads_stays() -> None:
    model = graph(SPLIT["Split by sizes"] + " g = Gelu(x) y = Mul(v, g) z = Neg(g)", NUMBERS, outputs="y z")
    assert sorted(fused(model)) == ["Gelu", "Mul", "Neg", "Split"]


def test_an_ordinary_silu_or_tanh_is_left_in_peace() -> None:
    model = graph("a = Mul(h, two) s = Sigmoid(a) p = Mul(h, s) y = Tanh(p)", NUMBERS)
    (step,) = run(model, (FUSE_GELU,))
    assert (step.applied, step.refused) == (0, ())


TANH = "a = Mul(bent, k) t = Tanh(a) s = Add(t, one) p = Mul(h, s) y = Mul(p, half)"
ANOTHER = "the approximation of GELU by tanh is another function than the kernel's, which is exact"


@pytest.mark.parametrize(
    ("body", "dtype", "sentence"),
    [
        ('y = Gelu<approximate: string = "tanh">(h)', "float", f"Gelu '%s': {ANOTHER}"),
        (f"c = Mul(h, h) bent = Mul(c, h) {TANH}", "float", f"Tanh '%s': {ANOTHER}"),
        ("y = Gelu(h)", "float16", "Gelu '%s': the input is FLOAT16, and the kernel takes FLOAT"),
        ("a = Mul(h, h) e = Erf(a) y = Add(e, one)", "float", "Erf '%s': it is not 1 + erf(x / sqrt 2)"),
        ("a = Div(h, root) e = Erf(a) y = Add(e, two)", "float", "Erf '%s': it is not 1 + erf(x / sqrt 2)"),
        (
            "a = Div(h, root) e = Erf(a) s = Add(e, one) p = Mul(h, s) y = Mul(p, two)",
            "float",
            "Erf '%s': 1 + erf(x / sqrt 2) is not multiplied with x and one half, and nothing else",
        ),
        ("a = Mul(h, quick) s = Sigmoid(a) y = Mul(a, s)", "float", "Sigmoid '%s': the sigmoid of 1.702 x is not multiplied with x alone"),
    ],
)
def test_a_site_that_is_left_has_its_reason(body: str, dtype: str, sentence: str) -> None:
    model = graph(body, NUMBERS + ", float k = {0.7978846}", dtype=dtype)
    (step,) = run(model, (FUSE_GELU,))
    (left,) = [each for each in model.graph if each.op_type == sentence.split()[0]]
    assert (step.applied, step.refused) == (0, (sentence % left.name,))


class Unet(torch.nn.Module):
    """SD's structure in small: a transformer block in each of 16 attention blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, cross_attention_dim=16,
                                         attention_head_dim=2, layers_per_block=2)  # fmt: skip

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class TextEncoder(torch.nn.Module):
    def __init__(self, layers: int, activation: str) -> None:
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2, hidden_act=activation,
            bos_token_id=0, eos_token_id=3, pad_token_id=1,
        )  # fmt: skip
        self.model = CLIPTextModel(config)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, return_dict=False)[0]


MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "sd": Unet,
    "vit-l": lambda: TextEncoder(12, "quick_gelu"),
    "vit-h": lambda: TextEncoder(23, "gelu"),
    "tanh": lambda: TextEncoder(1, "gelu_pytorch_tanh"),
}
COUNTS = {"sd": {"LinearGeglu": 16}, "vit-l": {"QuickGelu": 12}, "vit-h": {"Gelu": 23}, "tanh": {}}


def component(name: str) -> Component:
    torch.manual_seed(zlib.crc32(name.encode()))
    module = MODULES[name]().eval()
    if name != "sd":
        axes = {"input_ids": {0: "batch_size", 1: "sequence_length"}, "out": {0: "batch_size", 1: "sequence_length"}}
        return Component(name, module, {"input_ids": torch.randint(4, 60, (2, 9))}, ("out",), axes)
    # traced at a size that it cannot halve three times: else torch takes its sizes for constants
    inputs = {"sample": torch.randn(2, 4, 12, 10), "timestep": torch.tensor(5), "encoder_hidden_states": torch.randn(2, 7, 16)}
    picture = {0: "batch_size", 2: "height", 3: "width"}
    axes = {"sample": picture, "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"}, "out": picture}
    return Component(name, module, inputs, ("out",), axes)


def by_torchscript(made: Component, folder: Path, opset: int) -> ir.Model:
    with torch.no_grad():
        torch.onnx.export(made.module, tuple(made.example_inputs.values()), folder / "model.onnx", dynamo=False, opset_version=opset,
                          input_names=list(made.example_inputs), output_names=["out"], dynamic_axes=made.dynamic_axes)  # fmt: skip
    return ir.load(folder / "model.onnx")


EXPORTERS: dict[str, Callable[[Component, Path], ir.Model]] = {
    "dynamic": lambda made, _: trace(made, dynamic=True),
    "static": lambda made, _: trace(made, dynamic=False),
    "torchscript": lambda made, folder: by_torchscript(made, folder, 14),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        ("sd", "dynamic"),
        ("sd", "torchscript"),
        ("vit-l", "static"),
        ("vit-h", "torchscript"),
        ("tanh", "dynamic"),
    ],
)
def test_every_site_of_a_real_export_is_fused(ops_library: Path, tmp_path: Path, name: str, exporter: str) -> None:
    made = component(name)
    model = EXPORTERS[exporter](made, tmp_path)
    steps = {step.name: step for step in run(model, for_target("cpu"))}
    assert [each.rpartition(": ")[2] for each in steps["fuse gelu"].refused] == ([ANOTHER] if name == "tanh" else [])
    # the layer in front of a GEGLU takes it in
    fused = Counter(each.op_type for each in model.graph if each.op_type in (*OPS, "LinearGeglu") and each.domain == "handheld")
    assert fused == COUNTS[name]

    with torch.no_grad():
        expected = made.module(*made.example_inputs.values()).double().numpy()
    feeds = {key: value.numpy() for key, value in made.example_inputs.items()}
    for library in (None, ops_library):  # one file, with the kernels and without
        (got,) = session(model, library).run(None, feeds)
        assert 10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum()) >= 90
