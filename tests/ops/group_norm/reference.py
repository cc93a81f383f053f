"""GroupNorm and GroupNormSilu in float64, and the error that their kernels and bodies are allowed."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import onnx

from ..harness import UNIT, Shape, one_op

OPS = ("GroupNorm", "GroupNormSilu")
SHAPES = [  # of the input, and the number of groups
    ((1, 4, 1, 1), 4),  # groups of one value
    ((1, 3, 1, 1), 1),
    ((2, 6, 3, 5), 3),
    ((1, 8, 7), 2),
    ((2, 4, 3, 5, 7), 2),
    ((1, 10, 33, 31), 5),
    ((2, 320, 8, 8), 32),
    ((1, 8, 128, 96), 2),
    ((2, 4, 0, 3), 2),  # nothing to do
]


def node(op_type: str, shape: Shape, **options: Any) -> onnx.ModelProto:
    """A model of one op; strings in `shape` are dynamic dimensions."""
    return one_op(op_type, {"x": shape, "scale": ("s",), "bias": ("b",)}, shape, **options)


def operands(shape: tuple[int, ...], mean: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(zlib.crc32(repr((shape, mean)).encode()))
    x = generator.normal(mean, 1, shape)
    scale, bias = generator.normal(1, 0.5, shape[1]), generator.normal(0, 1, shape[1])
    return {"x": x.astype(np.float32), "scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}


def oracle(op_type: str, groups: int, epsilon: float, x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the error that runtime/ops/group_norm/group_norm.h allows a kernel."""
    grouped = x.astype(np.float64).reshape(x.shape[0], groups, x.size // (x.shape[0] * groups))
    if not x.size:
        return np.zeros(x.shape), np.zeros(x.shape)
    deviation = np.sqrt(grouped.var(axis=2, keepdims=True) + epsilon)
    normalized = ((grouped - grouped.mean(axis=2, keepdims=True)) / deviation).reshape(x.shape)
    per_channel = (-1, *(1,) * (x.ndim - 2))
    wide_scale, wide_bias = (each.astype(np.float64).reshape(per_channel) for each in (scale, bias))
    y = normalized * wide_scale + wide_bias
    allowed = 1.5 * UNIT * ((np.abs(normalized) + 1) * np.abs(wide_scale) + np.abs(wide_bias))
    if op_type == "GroupNormSilu":
        y = y / (1 + np.exp(-y))
        allowed = 1.1 * allowed + 2.5 * UNIT * np.abs(y)  # the slope of SiLU is at most 1.1
    return y, allowed


def hold_body(got: np.ndarray, op_type: str, groups: int, mean: float, feeds: dict[str, np.ndarray]) -> None:
    """A body rounds the sum of a group, and so its mean, to float32: that is relative to the mean, not to what is left without it.

    4: its roundings are a dozen instead of the kernel's four; 8: what sums of tens of thousands of floats lose.
    """
    expected, allowed = oracle(op_type, groups, 1e-5, **feeds)
    slope = np.abs(feeds["scale"]).reshape(-1, *(1,) * (got.ndim - 2)) * (1 if got.size > got.shape[0] * groups else 1e-5**-0.5)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= 4 * allowed + 8 * 1.1 * UNIT * abs(mean) * slope).all()
