"""The kernels of Linear, LinearAdd and LinearGeglu against float64, for every instruction set that they are written for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graph_passes.ops.linear import pack
from runtime.compare import snr_db

from ..harness import ISAS, Shape, hold_that_the_library_decides, runs_here, session, without_body
from .reference import OPS, PRECISIONS, hold, node, operands, oracle, rounds_to, stored, taken


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_is_a_linear_layer(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for op_type in OPS:
        for precision, dtype in PRECISIONS.items():
            for shape, columns in taken(op_type):
                matrix, feeds = operands(op_type, shape, columns)
                model = node(op_type, None, pack(matrix, dtype), matrix.shape)
                if not runs_here(isa, model, ops_library, monkeypatch):
                    return
                kernel = session(model, ops_library)
                hold(kernel.run(None, feeds)[0], *oracle(op_type, stored(matrix, precision), feeds, rounds_to(precision, isa)))


@pytest.mark.parametrize("isa", ISAS)
def test_float16_costs_what_its_limits_are_derived_from(ops_library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 dB, as export/limits.py says, within 1 dB for where the numbers lie between powers of two. Chains of 8 or of 32 are 2 dB off."""
    matrix, feeds = operands("Linear", (64, 640), 64)
    feeds["x"], feeds["bias"] = feeds["x"] - np.float32(0.1), np.zeros(64, np.float32)
    model = node("Linear", None, pack(matrix, ir.DataType.FLOAT16), matrix.shape)
    if runs_here(isa, model, ops_library, monkeypatch):
        expected = feeds["x"].astype(np.float64) @ matrix
        assert snr_db(expected, session(model, ops_library).run(None, feeds)[0]) == pytest.approx(64, abs=1)


@pytest.mark.parametrize("op_type", OPS)
def test_one_file_runs_on_the_kernel_with_the_library_and_on_the_body_without(
    ops_library: Path, op_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, feeds = operands(op_type, (2, 5, 12), 32)
    model = node(op_type, ("N", "T", 12), pack(matrix, ir.DataType.FLOAT), matrix.shape)
    expected, allowed = oracle(op_type, matrix, feeds)
    for library in (ops_library, None):
        hold(session(model, library).run(None, feeds)[0], expected, 4 * allowed)
    hold_that_the_library_decides(model, ops_library, monkeypatch)


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({"x": (2, 11)}, r"LinearAdd: the input has shape \[2, 11\], and must be \[..., 12\]"),
        ({"x": ()}, r"LinearAdd: the input has shape \[\], and must be \[..., 12\]"),
        ({"bias": (16,)}, r"LinearAdd: the shape of the bias is \[16\], and must be \[32\]"),
        ({"residual": (32,)}, r"LinearAdd: the shape of the residual is \[32\], and must be \[2, 32\]"),
        ({"residual": (3, 32)}, r"LinearAdd: the shape of the residual is \[3, 32\], and must be \[2, 32\]"),
    ],
)
def test_the_kernel_refuses_shapes_with_a_sentence(ops_library: Path, feeds: dict[str, tuple[int, ...]], sentence: str) -> None:
    matrix, _ = operands("LinearAdd", (2, 12), 32)
    kernel = session(without_body(node("LinearAdd", None, pack(matrix, ir.DataType.FLOAT), matrix.shape)), ops_library)
    good = {"x": (2, 12), "bias": (32,), "residual": (2, 32)}
    with pytest.raises(Exception, match=sentence):
        kernel.run(None, {name: np.ones(size, np.float32) for name, size in {**good, **feeds}.items()})
    assert kernel.run(None, {name: np.ones(size, np.float32) for name, size in good.items()})[0].shape == (2, 32)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (np.zeros((2, 12, 16), np.float32), r"Linear: the shape of the weights is \[2, 12, 16\], and must be \[2, 12, 16, 1\]"),
        (np.zeros((1, 12, 16, 1), np.float32), r"Linear: the shape of the weights is \[1, 12, 16, 1\], and must be \[2, 12, 16, 1\]"),
        (
            np.zeros((2, 12, 16, 1), ml_dtypes.bfloat16),
            r"Linear: the shape of the weights is \[2, 12, 16, 1\], and must be \[2, 6, 16, 2\]",
        ),
        (np.zeros((2, 12, 16, 1), np.float16), r"Linear: the shape of the weights is \[2, 12, 16, 1\], and must be \[2, 6, 16, 2\]"),
        (np.zeros((2, 12, 16, 1), np.float64), "Linear: the weights must be float32, bfloat16 or float16"),
    ],
)
def test_the_kernel_refuses_weights_with_a_sentence(ops_library: Path, weights: np.ndarray, sentence: str) -> None:
    as_singles = node("Linear", (2, 12), weights if weights.dtype != np.float64 else weights.astype(np.float32), (12, 32))
    if weights.dtype == np.float64:
        as_singles.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
    with pytest.raises(Exception, match=sentence):
        session(without_body(as_singles), ops_library).run(None, {"x": np.ones((2, 12), np.float32), "bias": np.ones(32, np.float32)})


@pytest.mark.parametrize(
    ("op_type", "changed", "sentence"),
    [
        ("Linear", {"channels_out": 0}, "Linear: the attribute 'channels_out' must be 1 or more, and is 0"),
        ("Linear", {"channels_in": 0}, "Linear: the attribute 'channels_in' must be 1 or more, and is 0"),
        ("Linear", {"channels_in": 2.5}, "Linear: the attribute 'channels_in' is missing or is not an integer"),
        ("LinearGeglu", {"channels_out": 48}, "LinearGeglu: the attribute 'channels_out' must be a multiple of 32, and is 48"),
    ],
)
def test_the_kernel_refuses_attributes_with_a_sentence(ops_library: Path, op_type: str, changed: dict[str, Any], sentence: str) -> None:
    model = node(op_type, (2, 12), np.zeros((2, 12, 16, 1), np.float32), (12, 32), **changed)
    with pytest.raises(Exception, match=sentence):
        session(without_body(model), ops_library)


@pytest.mark.parametrize(
    ("op_type", "shape", "inferred"),
    [("Linear", ("N", 5, 12), ["N", 5, 32]), ("LinearGeglu", ("N", 5, 12), ["N", 5, 16]), ("LinearAdd", None, [])],
)
def test_the_kernel_infers_its_shape(ops_library: Path, op_type: str, shape: Shape, inferred: list[int | str]) -> None:
    matrix, feeds = operands(op_type, (2, 5, 12), 32)
    kernel = session(without_body(node(op_type, shape, pack(matrix, ir.DataType.FLOAT), matrix.shape)), ops_library)
    assert kernel.get_outputs()[0].shape == inferred
    assert kernel.run(None, feeds)[0].shape == (2, 5, 16 if op_type == "LinearGeglu" else 32)
