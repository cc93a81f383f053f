"""Convolutions of one pixel beside the Transpose between pictures and tokens are linear layers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import copy, feed, graph, ops, run_in_double, run_in_runtime

from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.rules.multiply_tokens import MULTIPLY_TOKENS
from graph_passes.step import run

WEIGHTS = "float[2, 3, 1, 1] w = {1, -2, 0.5, 3, 4, -0.25}, float[2] b = {0.5, -1}"
IN = "c = Conv(x, w, b) y = Transpose<perm: ints = [0, 2, 3, 1]>(c)"
OUT = "t = Transpose<perm: ints = [0, 3, 1, 2]>(x) y = Conv(t, w, b)"
PICTURE, TOKENS = "float[N, 3, M, 4] x", "float[N, M, 4, 3] x"


@pytest.mark.parametrize(
    ("body", "inputs", "left"),
    [
        (IN, PICTURE, ["Transpose", "MatMul", "Add"]),
        (IN.replace(", b)", ")"), PICTURE, ["Transpose", "MatMul"]),
        (OUT, TOKENS, ["MatMul", "Add", "Transpose"]),
        (OUT.replace("Conv(", "Conv<pads: ints = [0, 0, 0, 0], strides: ints = [1, 1]>("), TOKENS, ["MatMul", "Add", "Transpose"]),
    ],
)  # fmt: skip
def test_it_becomes_a_product_with_the_tokens(body: str, inputs: str, left: list[str]) -> None:
    model = graph(body, inputs, initializers=WEIGHTS)
    before = copy(model)
    (step, _) = run(model, (MULTIPLY_TOKENS.as_pass(), REMOVE_UNUSED))
    assert step.applied == 1
    assert [node.op_type for node in model.graph] == left
    assert all(
        value is not None and value.dtype == ir.DataType.FLOAT and value.shape is not None for node in model.graph for value in node.inputs
    )
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    feeds = feed(before)
    (expected,) = run_in_double(before, feeds)
    np.testing.assert_allclose(run_in_double(model, feeds)[0], expected, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(run_in_runtime(model, feeds)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (IN.replace("Conv(", "Conv<pads: ints = [1, 1, 1, 1]>("), PICTURE),
        (IN.replace("Conv(", "Conv<strides: ints = [2, 2]>("), PICTURE),
        (IN.replace("[0, 2, 3, 1]", "[0, 3, 2, 1]"), PICTURE),
        (IN + " z = Neg(c) q = ReduceSum(z)", PICTURE),
        (OUT.replace("[0, 3, 1, 2]", "[0, 3, 2, 1]"), TOKENS),
        ("y = Conv(x, w, b)", PICTURE),
        ("y = Transpose<perm: ints = [0, 2, 3, 1]>(x)", PICTURE),
    ],
)
def test_anything_else_stays(body: str, inputs: str) -> None:
    outputs = "float[] y, float[] q" if " q = " in body else "float[] y"
    model = graph(body, inputs, outputs, initializers=WEIGHTS)
    before = ops(model)
    (step,) = run(model, (MULTIPLY_TOKENS.as_pass(),))
    assert (step.applied, ops(model)) == (0, before)
