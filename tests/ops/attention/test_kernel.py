"""The kernels of FlashAttention and PartialSoftmaxAttention against float64, for every instruction set that they are written for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from ..harness import ISAS, UNIT, Shape, hold_that_the_library_decides, runs_here, session, without_body, without_shape
from .reference import MASKS, OPS, SHAPES, node, of_heads, operands, oracle


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op_type", OPS)
def test_every_kernel_is_attention(ops_library: Path, op_type: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not runs_here(isa, of_heads(op_type, 1, 1.0), ops_library, monkeypatch):
        return
    for shape in SHAPES:
        scale = shape[4] ** -0.5
        kernel = session(of_heads(op_type, shape[1], scale), ops_library)
        for mask in MASKS:
            feeds = operands(shape, mask)
            expected, allowed = oracle(shape[1], scale, **feeds)
            got = kernel.run(None, feeds)[0]
            assert got.shape == expected.shape
            assert (np.abs(got - expected) <= allowed).all()


@pytest.mark.parametrize("op_type", OPS)
def test_scores_beyond_the_range_of_exp(ops_library: Path, op_type: str) -> None:
    """In body and kernel alike the largest score takes all, and a row of the lowest of all numbers is the mean."""
    model = of_heads(op_type, 1, 1.0)
    q, v = np.full((1, 3, 2), 100, np.float32), np.arange(10, dtype=np.float32).reshape(1, 5, 2)
    k = np.array([-1e5, 2e4, -1e5, 1e5, 9e4], np.float32)[None, :, None].repeat(2, axis=2)
    lowest = np.full((1, 1, 1, 1), np.finfo(np.float32).min, np.float32)
    for library in (None, ops_library):
        run_one = session(model, library)
        (y,) = run_one.run(None, {"q": q, "k": k, "v": v, "mask": np.zeros((1, 1, 1, 1), np.float32)})
        np.testing.assert_array_equal(y, v[:, [3, 3, 3]])
        (y,) = run_one.run(None, {"q": q / 100, "k": k / 1e5, "v": v, "mask": lowest})
        np.testing.assert_allclose(y, v.mean(axis=1, keepdims=True).repeat(3, axis=1), rtol=4 * UNIT)


def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = of_heads("FlashAttention", 2, 0.5), operands((2, 2, 5, 7, 3), "keys")
    results = [session(model, library).run(None, feeds)[0] for library in (ops_library, None)]
    np.testing.assert_allclose(*results, rtol=0, atol=3 * oracle(2, 0.5, **feeds)[1].max())
    hold_that_the_library_decides(model, ops_library, monkeypatch)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"q": (1, 4, 7)}, r"the queries have shape \[1, 4, 7\], and must be \[batch, tokens, 2 heads \* dim\]"),
        ({"q": (4, 6)}, r"the queries have shape \[4, 6\], and must be \[batch, tokens, 2 heads \* dim\]"),
        ({"k": (2, 5, 6)}, r"the keys have shape \[2, 5, 6\], and the queries \[1, 4, 6\]: batch and channels must agree"),
        ({"k": (1, 5, 8)}, r"the keys have shape \[1, 5, 8\], and the queries \[1, 4, 6\]: batch and channels must agree"),
        ({"v": (1, 6, 6)}, r"the values have shape \[1, 6, 6\], and the keys \[1, 5, 6\]"),
        ({"mask": (1, 2, 4, 4)}, r"the mask has shape \[1, 2, 4, 4\], and must be \[1, 2, 4, 5\], or 1 on any of these axes"),
        ({"mask": (4, 5)}, r"the mask has shape \[4, 5\], and must be \[1, 2, 4, 5\], or 1 on any of these axes"),
    ],
)
def test_the_kernel_refuses_shapes_with_a_sentence(ops_library: Path, shapes: dict[str, tuple[int, ...]], sentence: str) -> None:
    kernel = session(without_body(node("FlashAttention", None, None, None, heads=2, scale=1.0)), ops_library)
    good = {"q": (1, 4, 6), "k": (1, 5, 6), "v": (1, 5, 6), "mask": (1, 1, 4, 5)}
    with pytest.raises(Exception, match=f"FlashAttention: {sentence}"):
        kernel.run(None, {name: np.ones(size, np.float32) for name, size in {**good, **shapes}.items()})
    (y,) = kernel.run(None, {name: np.ones(size, np.float32) for name, size in good.items()})
    np.testing.assert_array_equal(y, np.ones((1, 4, 6)))  # a refusal leaves the session as it was


@pytest.mark.parametrize(
    ("attributes", "dtype", "sentence"),
    [
        ({"scale": 1.0}, "FLOAT", "PartialSoftmaxAttention: the attribute 'heads' is missing or is not an integer"),
        ({"heads": 2}, "FLOAT", "PartialSoftmaxAttention: the attribute 'scale' is missing or is not a float"),
        ({"heads": 0, "scale": 1.0}, "FLOAT", "PartialSoftmaxAttention: the attribute 'heads' must be 1 or more, and is 0"),
        ({"heads": 2, "scale": float("inf")}, "FLOAT", "PartialSoftmaxAttention: the attribute 'scale' must be a finite number"),
        (
            {"heads": 2, "scale": 1.0},
            "FLOAT16",
            r"Type 'tensor\(float16\)' of input parameter \(q\) of operator \(PartialSoftmaxAttention\)",
        ),
    ],
)
def test_the_kernel_refuses_attributes_and_types_with_a_sentence(
    ops_library: Path, attributes: dict[str, float], dtype: str, sentence: str
) -> None:
    model = node("PartialSoftmaxAttention", ("B", "Q", 6), ("B", "K", 6), dtype=onnx.TensorProto.DataType.Value(dtype), **attributes)
    with pytest.raises(Exception, match=sentence):
        session(without_body(model), ops_library)


@pytest.mark.parametrize(("shape", "inferred"), [(("B", "Q", 6), ["B", "Q", 6]), (("B", None, 6), []), (None, [])])
def test_the_kernel_keeps_a_shape_that_is_known(ops_library: Path, shape: Shape, inferred: list[int | str]) -> None:
    model = node("FlashAttention", shape, ("B", "K", 6), heads=2, scale=0.5)
    kernel = session(without_shape(without_body(model)), ops_library)
    assert kernel.get_outputs()[0].shape == inferred
    assert kernel.run(None, operands((2, 2, 5, 7, 3), "none"))[0].shape == (2, 5, 6)
