"""The bodies of Gelu, QuickGelu and Geglu against float64."""

from __future__ import annotations

import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from ..harness import OPSETS, inferred, session
from .reference import OPS, SHAPES, hold_body, node, operand


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_the_function(op_type: str, shape: tuple[int, ...]) -> None:
    model, x = node(op_type, shape), operand(shape, 3)
    if x.size <= 1000:  # the reference evaluates erf in Python
        hold_body(ReferenceEvaluator(model).run(None, {"x": x})[0], op_type, x)
    hold_body(session(model, None).run(None, {"x": x})[0], op_type, x)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_valid_at_every_opset_and_infers_shapes(op_type: str, opset: int) -> None:
    model, x = node(op_type, ("N", "T", 8), opset), operand((2, 3, 8), 2)
    onnx.checker.check_model(model, full_check=True)
    hold_body(session(model, None).run(None, {"x": x})[0], op_type, x)
    sizes = inferred(model)
    # of a Slice whose end is computed only the rank is inferred; a graph keeps what it knew of the shape before the fusion
    assert len(sizes) == 3 if op_type == "Geglu" else sizes == ["N", "T", 8]
