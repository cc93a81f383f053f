"""The bodies of GroupNorm and GroupNormSilu against float64."""

from __future__ import annotations

import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from graph_passes.errors import GraphError

from ..harness import OPSETS, inferred, session
from .reference import OPS, SHAPES, hold_body, node, operands


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_group_normalization(op_type: str, shape: tuple[int, ...], groups: int, mean: float) -> None:
    model, feeds = node(op_type, shape, epsilon=1e-5, groups=groups), operands(shape, mean)
    hold_body(ReferenceEvaluator(model).run(None, feeds)[0], op_type, groups, mean, feeds)
    hold_body(session(model, None).run(None, feeds)[0], op_type, groups, mean, feeds)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_valid_at_every_opset_and_infers_shapes(op_type: str, opset: int) -> None:
    model, feeds = node(op_type, ("N", 8, "H", "W"), opset=opset, epsilon=1e-5, groups=4), operands((2, 8, 3, 5), 0)
    onnx.checker.check_model(model, full_check=True)
    hold_body(session(model, None).run(None, feeds)[0], op_type, 4, 0, feeds)
    assert inferred(model) == ["N", 8, "H", "W"]


@pytest.mark.parametrize("opset", [13, 24])
def test_a_body_is_attached_only_where_it_is_valid(opset: int) -> None:
    with pytest.raises(GraphError, match=f"the model has opset {opset}, and the bodies of the custom ops are written for 14 to 23"):
        node("GroupNorm", (1, 4, 3), opset=opset, epsilon=1e-5, groups=2)
