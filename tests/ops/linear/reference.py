"""Linear, LinearAdd and LinearGeglu in float64, and the error that their kernels are allowed."""

from __future__ import annotations

import math
import zlib
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch

from ..harness import Shape, one_op

OPS = ("Linear", "LinearAdd", "LinearGeglu")
PRECISIONS = {"fp32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16}
SHAPES = [  # of the input, and the columns of the weights; LinearGeglu takes multiples of 32
    ((1, 1), 1),
    ((3, 7), 20),
    ((2, 3, 16), 64),
    ((2, 2, 5, 33), 96),
    ((1, 77, 64), 160),
    ((0, 8), 32),
    ((1, 4, 1283), 64),  # a depth of two blocks, and odd
    ((1, 300, 32), 64),  # rows of two blocks
]


def node(op_type: str, shape: Shape, weights: np.ndarray, channels: tuple[int, int], opset: int = 20, **changed: Any) -> onnx.ModelProto:
    """A model of one op with packed weights; strings in `shape` are dynamic dimensions."""
    inputs: dict[str, Shape | onnx.TensorProto] = {"x": shape, "weights": tensor("weights", weights), "bias": None}
    if op_type == "LinearAdd":
        inputs["residual"] = None if shape is None else (*shape[:-1], channels[1])
    attributes = {"channels_in": channels[0], "channels_out": channels[1]} | changed
    return one_op(op_type, inputs, None, opset, **attributes)


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    if array.dtype == np.float32:
        return onnx.numpy_helper.from_array(array, name)
    return onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, array.shape, array.view(np.uint16).tobytes(), raw=True)


def operands(op_type: str, shape: tuple[int, ...], columns: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The matrix and what is fed."""
    generator = np.random.default_rng(zlib.crc32(repr((op_type, shape, columns)).encode()))
    matrix = (generator.normal(0, 1, (shape[-1], columns)) / math.sqrt(shape[-1])).astype(np.float32)
    feeds = {"x": generator.normal(0.1, 1, shape).astype(np.float32), "bias": generator.normal(0, 1, columns).astype(np.float32)}
    if op_type == "LinearAdd":
        feeds["residual"] = generator.normal(0, 1, (*shape[:-1], columns)).astype(np.float32)
    return matrix, feeds


def oracle(op_type: str, matrix: np.ndarray, feeds: dict[str, np.ndarray], rounds: bool) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the error that runtime/ops/linear/linear.h allows a kernel, which may round its activations to bfloat16."""
    x, bias, residual = (feeds.get(name, np.zeros(1)).astype(np.float64) for name in ("x", "bias", "residual"))
    wide = matrix.astype(np.float64)
    y, sums = x @ wide + bias + residual, np.abs(x) @ np.abs(wide)
    allowed = (matrix.shape[0] + 4) * 2.0**-24 * (sums + np.abs(bias) + np.abs(residual)) + (2.0**-8 * sums if rounds else 0)
    if op_type != "LinearGeglu":
        return y, allowed
    (value, gate), (of_value, of_gate) = np.split(y, 2, axis=-1), np.split(allowed, 2, axis=-1)
    gelu = gate * torch.special.erfc(torch.from_numpy(-gate * math.sqrt(0.5))).numpy() / 2
    of_gelu = 1.13 * of_gate + (4 + gate**2 / 3) * 2.0**-23 * np.abs(gelu)  # the slope of GELU is at most 1.13
    return value * gelu, np.abs(value) * of_gelu + of_value * (np.abs(gelu) + of_gelu) + 1e-37


def stored(matrix: np.ndarray, precision: str) -> np.ndarray:
    """The matrix with the numbers that a package has."""
    return matrix if precision == "fp32" else matrix.astype(ml_dtypes.bfloat16).astype(np.float32)


def taken(op_type: str) -> list[tuple[tuple[int, ...], int]]:
    return [(shape, columns) for shape, columns in SHAPES if op_type != "LinearGeglu" or columns % 32 == 0]


def hold(got: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> None:
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= allowed).all()
