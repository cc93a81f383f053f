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

from ..harness import BFLOAT16_ISAS, Shape, one_op

OPS = ("Linear", "LinearAdd", "LinearGeglu")
PRECISIONS = {"fp32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}
NUMBERS: dict[str, Any] = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16}
HALF_CHAIN = 16  # products that a kernel sums up as float16 numbers
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
    if array.dtype in (np.float32, np.float16):
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


def oracle(op_type: str, matrix: np.ndarray, feeds: dict[str, np.ndarray], rounds: str = "fp32") -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the error that runtime/ops/linear/linear.h allows a kernel, which rounds its activations to `rounds`."""
    x, bias, residual = (feeds.get(name, np.zeros(1)).astype(np.float64) for name in ("x", "bias", "residual"))
    wide = matrix.astype(np.float64)
    y, sums, depth = x @ wide + bias + residual, np.abs(x) @ np.abs(wide), len(matrix)
    allowed = (depth + 4) * 2.0**-24 * (sums + np.abs(bias) + np.abs(residual)) + rounding(depth, sums, np.abs(wide).sum(axis=0), rounds)
    if op_type != "LinearGeglu":
        return y, allowed
    (value, gate), (of_value, of_gate) = np.split(y, 2, axis=-1), np.split(allowed, 2, axis=-1)
    gelu = gate * torch.special.erfc(torch.from_numpy(-gate * math.sqrt(0.5))).numpy() / 2
    of_gelu = 1.13 * of_gate + (4 + gate**2 / 3) * 2.0**-23 * np.abs(gelu)  # the slope of GELU is at most 1.13
    return value * gelu, np.abs(value) * of_gelu + of_value * (np.abs(gelu) + of_gelu) + 1e-37


def rounding(depth: int, sums: np.ndarray, weights: np.ndarray, rounds: str) -> np.ndarray:
    """The part of that error which comes from rounding to `rounds`; `sums`: of the sizes of products, `weights`: of those of weights."""
    if rounds == "fp16":
        chain = min(HALF_CHAIN, math.ceil(depth / 2))
        return (chain + 2) * 2.0**-11 * sums + 2.0**-25 * (depth + weights)
    return sums * (2.0**-8 if rounds == "bf16" else 0)


def rounds_to(precision: str, isa: str) -> str:
    """What a kernel rounds its activations to, for weights of that precision."""
    return "fp32" if precision == "bf16" and isa not in BFLOAT16_ISAS else precision


def stored(matrix: np.ndarray, precision: str) -> np.ndarray:
    """The matrix with the numbers that a package has."""
    return matrix.astype(NUMBERS[precision]).astype(np.float32)


def taken(op_type: str) -> list[tuple[tuple[int, ...], int]]:
    return [(shape, columns) for shape, columns in SHAPES if op_type != "LinearGeglu" or columns % 32 == 0]


def hold(got: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> None:
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= allowed).all()
