"""MatMul, Add, Add and Gemm in a graph -> Linear and LinearAdd; with a Geglu behind them LinearGeglu."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graph_passes.ops.gelu import FUSE_GELU
from graph_passes.ops.linear import fuse_linear
from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.pipelines import PORTABLE
from graph_passes.step import run

from ...architectures import Traced
from ..harness import before_and_after, copy, hold_against_torch
from .reference import PRECISIONS

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
    before = copy(model)
    _, linear = run(model, (FUSE_GELU, fuse_linear(precision)))
    assert (linear.name, linear.refused) == ("fuse linear", ())
    kinds = [each.op_type for each in model.graph]
    generator = np.random.default_rng(5)
    feeds = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        feeds[value.name] = generator.normal(size=[{"N": 2, "T": 3}.get(str(size), size) for size in value.shape]).astype(np.float32)
    tolerance = 1e-5 if precision == "fp32" else 2.0**-8
    for expected, got in before_and_after(before, model, feeds):
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


@pytest.mark.parametrize(
    ("exporter", "opset", "precision", "counts"),
    [
        # q, k, v of two attentions; to_out and the feed-forward's second layer end with the sum that goes around them
        ("dynamic", 20, "fp32", {"Linear": 6, "LinearAdd": 3, "LinearGeglu": 1}),
        ("static", 20, "bf16", {"Linear": 6, "LinearAdd": 3, "LinearGeglu": 1}),
        ("torchscript", 17, "fp32", {"Linear": 9, "LinearGeglu": 1}),  # whose shapes don't say that a sum is of equal ones
    ],
)
def test_every_site_of_a_real_export_is_fused(
    ops_library: Path, traced: Callable[..., Traced], exporter: str, opset: int, precision: str, counts: dict[str, int]
) -> None:
    export = traced("transformer", exporter, opset)
    model = export.model()
    run(model, PORTABLE)
    _, linear = run(model, (FUSE_GELU, fuse_linear(precision)))
    assert linear.refused == ()
    assert Counter(each.op_type for each in model.graph if each.domain == "handheld") == counts
    assert fuse_linear("fp32").refused(model) == []
    hold_against_torch(model, export, ops_library, least=90 if precision == "fp32" else 40)
