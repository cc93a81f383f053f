"""The packed weights, and the bodies of Linear, LinearAdd and LinearGeglu against float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from graph_passes.ops.linear import pack

from ..harness import OPSETS, session
from .reference import OPS, PRECISIONS, hold, node, operands, oracle, stored, taken


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
        expected, allowed = oracle(op_type, stored(matrix, precision), feeds)
        allowed = allowed + 4 * 2.0**-23 * (np.abs(expected) + 8)  # a body's GELU forms 1 + erf
        hold(session(model, None).run(None, feeds)[0], expected, allowed)
        if expected.size <= 1000 and precision == "fp32":  # the reference evaluates erf in Python, and casts no bfloat16 tensor
            hold(ReferenceEvaluator(model).run(None, feeds)[0], expected, allowed)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_valid_at_every_opset(op_type: str, opset: int) -> None:
    matrix, feeds = operands(op_type, (2, 5, 12), 32)
    model = node(op_type, ("N", "T", 12), pack(matrix, ir.DataType.FLOAT), matrix.shape, opset)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    expected, allowed = oracle(op_type, matrix, feeds)
    hold(session(model, None).run(None, feeds)[0], expected, 4 * allowed)
