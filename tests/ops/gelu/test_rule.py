"""x * (1 + erf(x / sqrt 2)) / 2 and its kin in a graph -> Gelu, QuickGelu and Geglu."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graph_passes.ops.gelu import FUSE_GELU
from graph_passes.pipelines import for_target
from graph_passes.step import run

from ...architectures import Traced
from ...graph_passes import graphs
from ..harness import UNIT, before_and_after, copy, hold_against_torch
from .reference import OPS, operand


def graph(body: str, constants: str = "", opset: int = 20, dtype: str = "float", outputs: str = "y") -> ir.Model:
    """A model in ONNX's text form, of h [N, T, 8]."""
    ports = ", ".join(f"{dtype}[N, T, M] {name}" for name in outputs.split())
    return graphs.graph(body, f"{dtype}[N, T, 8] h", ports, constants, opset)


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
    before = copy(model)
    (step,) = run(model, (FUSE_GELU,))
    assert (step.name, step.refused) == ("fuse gelu", ())
    kinds = [each.op_type for each in model.graph]
    h = operand((2, 3, 8), 2)
    for expected, got in before_and_after(before, model, {"h": h}):
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


@pytest.mark.parametrize(
    ("architecture", "exporter", "opset", "counts"),
    [
        ("unet", "dynamic", 20, {"LinearGeglu": 16}),  # the layer in front of a GEGLU takes it in
        ("unet", "torchscript", 14, {"LinearGeglu": 16}),
        ("vit-l", "static", 20, {"QuickGelu": 12}),
        ("vit-h", "torchscript", 14, {"Gelu": 23}),
        ("tanh", "dynamic", 20, {}),
    ],
)
def test_every_site_of_a_real_export_is_fused(
    ops_library: Path, traced: Callable[..., Traced], architecture: str, exporter: str, opset: int, counts: dict[str, int]
) -> None:
    export = traced(architecture, exporter, opset)
    model = export.model()
    steps = {step.name: step for step in run(model, for_target("cpu"))}
    assert [each.rpartition(": ")[2] for each in steps["fuse gelu"].refused] == ([ANOTHER] if architecture == "tanh" else [])
    ours = Counter(each.op_type for each in model.graph if each.domain == "handheld")
    assert {op_type: count for op_type, count in ours.items() if op_type in (*OPS, "LinearGeglu")} == counts
    hold_against_torch(model, export, ops_library)
