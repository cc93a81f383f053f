"""The bodies of FlashAttention and PartialSoftmaxAttention against float64."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from ..harness import OPSETS, inferred, session
from .reference import MASKS, OPS, SHAPES, node, of_heads, operands, oracle


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_attention(op_type: str, shape: tuple[int, int, int, int, int], mask: str) -> None:
    feeds, scale = operands(shape, mask), shape[4] ** -0.5
    model = of_heads(op_type, shape[1], scale)
    expected, allowed = oracle(shape[1], scale, **feeds)
    for got in (ReferenceEvaluator(model).run(None, feeds)[0], session(model, None).run(None, feeds)[0]):
        assert (got.dtype, got.shape) == (np.float32, expected.shape)
        assert (np.abs(got - expected) <= 2 * allowed).all()  # it rounds each weight and divides it, as the kernel does not


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op_type", OPS)
def test_the_body_is_valid_at_every_opset_and_infers_shapes(op_type: str, opset: int) -> None:
    feeds = operands((2, 2, 5, 7, 3), "heads")
    model = node(op_type, ("B", "Q", 6), ("B", "K", 6), (1, 2, "Q", "K"), opset=opset, heads=2, scale=0.5)
    onnx.checker.check_model(model, full_check=True)
    expected, allowed = oracle(2, 0.5, **feeds)
    assert (np.abs(session(model, None).run(None, feeds)[0] - expected) <= 2 * allowed).all()
    assert inferred(model) == ["B", "Q", 6]
