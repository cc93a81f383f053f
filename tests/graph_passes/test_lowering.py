"""The rules that lower graphs for accelerators: on the smallest graph that each is for, against float64, and on near misses."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import copy, feed, graph, ops, run_in_double, run_in_runtime

from graph_passes.passes.constants import FOLD_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.rule import Refused, Rule, apply, replace
from graph_passes.rules.add_zero_bias import ADD_ZERO_BIAS
from graph_passes.rules.approximate_gelu import APPROXIMATE_GELU
from graph_passes.rules.enlarge_by_factors import ENLARGE_BY_FACTORS
from graph_passes.rules.fold_bias import FOLD_BIAS
from graph_passes.rules.lower_group_norm import LOWER_GROUP_NORM
from graph_passes.rules.lower_instance_norm import LOWER_INSTANCE_NORM
from graph_passes.rules.lower_layer_norm import LOWER_LAYER_NORM
from graph_passes.rules.multiply_flat import MULTIPLY_FLAT
from graph_passes.rules.pool_by_product import POOL_BY_PRODUCT
from graph_passes.rules.scale_by_convolution import SCALE_BY_CONVOLUTION
from graph_passes.rules.unfold_groups import UNFOLD_GROUPS
from graph_passes.step import run

STANDARD = {"ReduceMean": 2, "Sub": 1, "Mul": 1, "Add": 1, "Sqrt": 1, "Div": 1}
OF_TWO_AXES = STANDARD | {"ReduceMean": 4}
W = "float[4,3] w = {0.1,-0.2,0.3,0.4,-0.5,0.6,0.7,0.8,-0.9,1,1.1,-1.2}"
NEAREST = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
PAIRS = "p = Unsqueeze(i, one) q = Concat <axis=1> (rows, p) y = GatherND(x, q)"

# rule, body, inputs, initializers, the operators that are left, opset
FIRES = [
    (
        LOWER_INSTANCE_NORM,
        "y = InstanceNormalization <epsilon=0.001> (x, s, b)",
        "float[2,3,4,5] x",
        "float[3] s = {1,2,3}, float[3] b = {0,1,0}",
        OF_TWO_AXES | {"Mul": 2, "Add": 2},
        20,
    ),
    (
        LOWER_INSTANCE_NORM,
        "y = InstanceNormalization (x, s, b)",
        "float[2,3,8] x",
        "float[3] s = {1,1,1}, float[3] b = {0,0,0}",
        STANDARD,
        20,
    ),
    (
        LOWER_INSTANCE_NORM,
        "y = InstanceNormalization (x, s, b)",
        "float[N,3,M] x",
        "float[3] s = {1,1,1}, float[3] b = {0,0,0}",
        STANDARD,
        17,
    ),
    (
        LOWER_LAYER_NORM,
        "y = LayerNormalization <axis=-1, epsilon=0.001> (x, s, b)",
        "float[N,4,3] x",
        "float[3] s = {1,2,3}, float[3] b = {0,1,0}",
        STANDARD | {"Mul": 2, "Add": 2},
        20,
    ),
    (
        LOWER_LAYER_NORM,
        "y = LayerNormalization <axis=1> (x, s)",
        "float[N,2,3] x",
        "float[2,3] s = {1,2,3,4,5,6}",
        OF_TWO_AXES | {"Mul": 2},
        20,
    ),
    (
        LOWER_GROUP_NORM,
        "y = GroupNormalization <num_groups=2, epsilon=0.001> (x, s, b)",
        "float[2,4,3,5] x",
        "float[4] s = {1,2,3,4}, float[4] b = {0,1,0,2}",
        {"Reshape": 2, "InstanceNormalization": 1, "Mul": 1, "Add": 1},
        21,
    ),
    (
        UNFOLD_GROUPS,
        "g = Reshape(x, t) y = InstanceNormalization(g, s, b)",
        "float[2,4,3,5] x",
        "int64[3] t = {2,2,-1}, float[2] s = {1,1}, float[2] b = {0,0}",
        {"Reshape": 2, "InstanceNormalization": 1},
        20,
    ),
    (APPROXIMATE_GELU, "y = Gelu(x)", "float[N,64] x", "", {"Mul": 8, "Min": 1, "Add": 5, "Tanh": 1}, 20),
    (APPROXIMATE_GELU, "y = Erf(x)", "float[N,64] x", "", {"Mul": 7, "Min": 1, "Add": 4, "Tanh": 1}, 20),
    (APPROXIMATE_GELU, 'y = Gelu <approximate="tanh"> (x)', "float[N,64] x", "", {"Mul": 5, "Add": 2, "Tanh": 1}, 20),
    (MULTIPLY_FLAT, "y = MatMul(x, w)", "float[2,5,4] x", W, {"Reshape": 2, "Gemm": 1}, 20),
    (MULTIPLY_FLAT, "y = MatMul(x, w)", "float[5,4] x", W, {"Gemm": 1}, 20),
    (MULTIPLY_FLAT, "t = Transpose <perm=[1,0]> (w) y = MatMul(x, t)", "float[2,5,3] x", W, {"Reshape": 2, "Gemm": 1}, 20),
    (FOLD_BIAS, "g = Gemm(x, w) y = Add(g, b)", "float[5,4] x", f"{W}, float[3] b = {{1,2,3}}", {"Gemm": 1}, 20),
    (
        FOLD_BIAS,
        "g = Gemm(x, w) r = Reshape(g, t) y = Add(b, r)",
        "float[6,4] x",
        f"{W}, float[3] b = {{1,2,3}}, int64[3] t = {{2,3,3}}",
        {"Gemm": 1, "Reshape": 1},
        20,
    ),
    (ADD_ZERO_BIAS, "y = Gemm(x, w)", "float[5,4] x", W, {"Gemm": 1}, 20),
    (ADD_ZERO_BIAS, "y = Gemm <transB=1> (x, w)", "float[5,3] x", W, {"Gemm": 1}, 20),
    (ENLARGE_BY_FACTORS, f'y = Resize <{NEAREST}> (x, "", f)', "float[2,3,4,5] x", "float[4] f = {1,1,2,3}", {"Resize": 1}, 20),
    (ENLARGE_BY_FACTORS, f'y = Resize <{NEAREST}> (x, "", "", n)', "float[2,3,4,5] x", "int64[4] n = {2,3,8,10}", {"Resize": 1}, 20),
    (
        POOL_BY_PRODUCT,
        PAIRS,
        "float[2,3,5] x, int64[2] i",
        "int64[2,1] rows = {0,1}, int64[1] one = {1}",
        {"Unsqueeze": 1, "Reshape": 3, "OneHot": 1, "MatMul": 1},
        20,
    ),
    (
        SCALE_BY_CONVOLUTION,
        "p = Mul(x, a) y = Add(b, p)",
        "float[2,3,4,5] x",
        "float[3,1,1] a = {1,2,3}, float[3,1,1] b = {0,1,-2}",
        {"Conv": 1},
        20,
    ),
    (
        SCALE_BY_CONVOLUTION,
        "p = Mul(a, x) y = Add(p, b)",
        "float[2,3,5] x",
        "float[3,1] a = {1,2,3}, float[3,1] b = {0,1,-2}",
        {"Conv": 1},
        20,
    ),
]

# rule, body, inputs, initializers, the reason, opset
REFUSES = [
    (
        LOWER_INSTANCE_NORM,
        "y = InstanceNormalization (x, s, b)",
        "float16[2,3,4] x, float16[3] s, float16[3] b",
        "",
        "the input is FLOAT16, and the epsilon is kept as FLOAT",
        20,
    ),
    (
        LOWER_LAYER_NORM,
        "y, m = LayerNormalization (x, s)",
        "float[2,3] x, float[3] s",
        "",
        "the mean or the deviation is asked for too",
        20,
    ),
    (
        LOWER_GROUP_NORM,
        "y = GroupNormalization <num_groups=2> (x, s, b)",
        "float[N,4,3] x, float[4] s, float[4] b",
        "",
        "the shape of the input is not made of numbers alone",
        21,
    ),
    (
        LOWER_GROUP_NORM,
        "y = GroupNormalization <num_groups=2> (x, s, b)",
        "float[2,4,3] x, float[2] s, float[2] b",
        "",
        "the scale is not known to hold one value per channel",
        20,
    ),
    (
        UNFOLD_GROUPS,
        "y = InstanceNormalization(x, s, b)",
        "float[2,2,30] x, float[2] s, float[2] b",
        "",
        "the input is no Reshape between shapes of numbers",
        20,
    ),
    (
        UNFOLD_GROUPS,
        "g = Reshape(x, t) y = InstanceNormalization(g, s, b)",
        "float[2,4,6,5] x, float[2] s, float[2] b",
        "int64[4] t = {2,2,12,5}",
        "the Reshape does not make [batch, groups, values] of rows",
        20,
    ),
    (APPROXIMATE_GELU, "y = Gelu(x)", "float16[N] x", "", "the input is not known to be FLOAT", 20),
    (MULTIPLY_FLAT, "y = MatMul(x, w)", "float[2,5,4] x, float[4,3] w", "", "the second factor is no constant", 20),
    (MULTIPLY_FLAT, "y = MatMul(x, w)", "float[N,5,4] x", W, "it is not known to be rows of numbers times a matrix", 20),
    (ADD_ZERO_BIAS, "y = Gemm(x, w, b)", "float[5,4] x, float[3] b", W, "it has a bias already", 20),
    (
        ADD_ZERO_BIAS,
        "y = Gemm(x, w)",
        "float[5,4] x, float[4,N] w",
        "",
        "it is not known to be rows of FLOAT times a matrix of known size",
        20,
    ),
    (FOLD_BIAS, "g = Gemm(x, w) y = Add(g, b)", "float[5,4] x, float[3] b", W, "nothing constant is added", 20),
    (
        FOLD_BIAS,
        "g = Gemm(x, w, b) y = Add(g, b)",
        "float[5,4] x",
        f"{W}, float[3] b = {{1,2,3}}",
        "it is added to no Gemm that has no C yet",
        20,
    ),
    (
        FOLD_BIAS,
        "g = Gemm(x, w) y = Add(g, b)",
        "float[5,4] x",
        f"{W}, float b = {{1}}",
        "it is not one number for each column of the product",
        20,
    ),
    (
        FOLD_BIAS,
        "g = Gemm(x, w) r = Relu(g) a = Add(g, b) y = Add(a, r)",
        "float[5,4] x",
        f"{W}, float[3] b = {{1,2,3}}",
        "the product is used without it too",
        20,
    ),
    (
        ENLARGE_BY_FACTORS,
        'y = Resize <mode="linear"> (x, "", f)',
        "float[2,3,4,5] x",
        "float[4] f = {1,1,2,3}",
        "the neighbours are not those at the rounded down, asymmetric place",
        20,
    ),
    (
        ENLARGE_BY_FACTORS,
        f'y = Resize <{NEAREST}> (x, "", f)',
        "float[2,3,4] x",
        "float[3] f = {1,1,2}",
        "it is not known to enlarge height and width alone",
        20,
    ),
    (
        ENLARGE_BY_FACTORS,
        f'y = Resize <{NEAREST}> (x, "", f)',
        "float[2,3,4,4] x",
        "float[4] f = {1,1,1.5,2}",
        "the factors are no whole numbers",
        20,
    ),
    (
        POOL_BY_PRODUCT,
        "y = GatherND(x, i)",
        "float[2,3,5] x, int64[2,2] i",
        "",
        "it does not pick one row of each of a batch of matrices",
        20,
    ),
    (
        POOL_BY_PRODUCT,
        PAIRS,
        "float[2,3,5] x, int64[2] i",
        "int64[2,1] rows = {1,0}, int64[1] one = {1}",
        "the rows do not come from one matrix after the other",
        20,
    ),
    (
        SCALE_BY_CONVOLUTION,
        "p = Mul(x, a) y = Add(p, x)",
        "float[2,3,5] x",
        "float[3,1] a = {1,2,3}",
        "neither operand is a constant of FLOAT",
        20,
    ),
    (
        SCALE_BY_CONVOLUTION,
        "p = Mul(x, a) y = Add(p, b)",
        "float[2,4,3] x",
        "float[3] a = {1,2,3}, float[3] b = {0,1,-2}",
        "the constant does not have one number for each channel of 3 or 4 axes",
        20,
    ),
    (
        SCALE_BY_CONVOLUTION,
        "p = Mul(x, a) s = Add(p, b) y = Mul(s, p)",
        "float[2,3,5] x",
        "float[3,1] a = {1,2,3}, float[3,1] b = {0,1,-2}",
        "what is added to is no product, or is used without the sum, too",
        20,
    ),
]


def name(case: object) -> str | None:
    return case.name.replace(" ", "_") if isinstance(case, Rule) else ""


@pytest.mark.parametrize(("rule", "body", "inputs", "initializers", "left", "opset"), FIRES, ids=name)
def test_a_rule_fires(rule: Rule, body: str, inputs: str, initializers: str, left: dict[str, int], opset: int) -> None:
    model = graph(body, inputs, initializers=initializers, opset=opset)
    before = copy(model)
    assert run(model, (rule.as_pass(),))[0].applied == 1
    run(model, (INFER_SHAPES, FOLD_CONSTANTS, REMOVE_UNUSED))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert ops(model) == {op: count for op, count in left.items() if count}
    feeds = feed(before)
    (exact,), (got,) = run_in_double(before, feeds), run_in_double(model, feeds)
    # the same arithmetic in another order, but for the approximation, which has its own test; the reference GroupNormalization is float32
    tolerance = {APPROXIMATE_GELU: 2e-5, LOWER_GROUP_NORM: 2e-6}.get(rule, 1e-12)
    np.testing.assert_allclose(got, exact, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(run_in_runtime(model, feeds)[0], exact, rtol=2e-5, atol=2e-5)
    run(model, (INFER_SHAPES,))
    assert apply(rule, model) == 0  # nothing is left for it


@pytest.mark.parametrize(("rule", "body", "inputs", "initializers", "reason", "opset"), REFUSES, ids=name)
def test_a_rule_refuses(rule: Rule, body: str, inputs: str, initializers: str, reason: str, opset: int) -> None:
    outputs = "float[] y, float[] m" if "y, m" in body else "float16[] y" if "float16" in inputs else "float[] y"
    model = graph(body, inputs, outputs=outputs, initializers=initializers, opset=opset)
    before = ir.to_proto(model).SerializeToString()
    candidates = [node for node in model.graph if node.op_type in rule.op_types]
    node = candidates[0] if "the product is used" in reason else candidates[-1]
    with pytest.raises(Refused, match=f"^{re.escape(reason)}$"):
        replace(node, rule.rewrite(node))
    assert apply(rule, model) == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_the_largest_error_of_the_gelu_is_as_stated() -> None:
    model = graph("y = Gelu(x)", "float[200001] x")
    lowered = copy(model)
    assert apply(APPROXIMATE_GELU, lowered) == 1
    x = np.linspace(-20, 20, 200_001).astype(np.float32)
    exact = run_in_double(model, {"x": x.astype(np.float64)})[0]
    assert np.abs(run_in_double(lowered, {"x": x.astype(np.float64)})[0] - exact).max() < 3.1e-6
    assert np.abs(run_in_runtime(lowered, {"x": x})[0] - exact).max() < 3.7e-6
    normal = np.random.default_rng(0).normal(size=200_001)
    exact, got = run_in_double(model, {"x": normal})[0], run_in_runtime(lowered, {"x": normal.astype(np.float32)})[0]
    assert 10 * np.log10(np.square(exact).sum() / np.square(got - exact).sum()) > 109


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_a_norm_keeps_the_digits_of_a_large_mean(mean: float) -> None:
    model = graph("y = InstanceNormalization(x, s, b)", "float[1,2,4096] x", initializers="float[2] s = {1,1}, float[2] b = {0,0}")
    assert apply(LOWER_INSTANCE_NORM, model) == 1
    x = (np.random.default_rng(0).normal(size=(1, 2, 4096)) + mean).astype(np.float32)
    exact = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    exact /= np.sqrt(np.square(exact).mean(-1, keepdims=True) + 1e-5)
    (got,) = run_in_runtime(model, {"x": x})
    # everything is shifted by the error of the mean, a sum of float32; E[x^2] - E[x]^2 would be off by 6e-8 of its square, 0.06
    assert np.abs(got - exact).max() < 4e-6 + 3e-7 * mean


def test_every_lowering_rule_fires_and_refuses() -> None:
    assert {rule.name for rule, *_ in FIRES} == {rule.name for rule, *_ in REFUSES}


def test_a_norm_over_a_large_picture_keeps_the_digits_of_float32() -> None:
    """A million numbers to a group, whose mean is ten deviations: their sum in float32, one by one, would leave 100 dB and less.

    Here a mean is that of 512 means of 2,048 numbers: roundings of the input of 10.5 deviations are 2^-24 x 10.5 / sqrt(3) of one, 126 dB.
    """
    model = graph("y = InstanceNormalization (x, s, b)", "float[1,2,512,2048] x", initializers="float[2] s = {1,1}, float[2] b = {0,0}")
    run(model, (LOWER_INSTANCE_NORM.as_pass(),))
    x = (np.random.default_rng(0).standard_normal((1, 2, 512, 2048)) + 10).astype(np.float32)
    (found,) = run_in_runtime(model, {"x": x})
    centered = x - x.mean((2, 3), dtype=np.float64, keepdims=True)
    right = centered / np.sqrt((centered**2).mean((2, 3), keepdims=True) + 1e-5)
    assert 10 * np.log10((right**2).mean() / ((found - right) ** 2).mean()) > 110
