"""Gelu, QuickGelu and Geglu in float64, and the error that their kernels and bodies are allowed."""

from __future__ import annotations

import math
import zlib

import numpy as np
import onnx
import torch

from ..harness import UNIT, Shape, one_op

OPS = ("Gelu", "QuickGelu", "Geglu")
SHAPES = [(2,), (1, 1, 34), (3, 5, 14), (2, 77, 256), (4, 0, 6), (2, 3, 0), (1, 64, 2560)]


def node(op_type: str, shape: Shape, opset: int = 20, dtype: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    """A model of one op; strings in `shape` are dynamic dimensions."""
    return one_op(op_type, {"x": shape}, shape and tuple(f"y{axis}" for axis in range(len(shape))), opset, dtype)


def operand(shape: tuple[int, ...], deviation: float) -> np.ndarray:
    generator = np.random.default_rng(zlib.crc32(repr((shape, deviation)).encode()))
    return generator.normal(0, deviation, shape).astype(np.float32)


def oracle(op_type: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the error that runtime/ops/gelu/gelu.h allows a kernel."""
    wide = x.astype(np.float64)
    if op_type == "QuickGelu":
        y = wide / (1 + np.exp(np.minimum(-float(np.float32(1.702)) * wide, 700)))
        return y, (3 + np.abs(wide)) * UNIT * np.abs(y) + 2e-37
    value, gate = np.split(wide, 2, axis=-1) if op_type == "Geglu" else (np.ones_like(wide), wide)
    y = gate * (torch.special.erfc(torch.from_numpy(-gate * math.sqrt(0.5))).numpy() / 2)
    allowed = (3 + np.where(gate < 0, gate**2 / 3, 0)) * UNIT * np.abs(y) + 2.0**-148
    return value * y, np.abs(value) * allowed + (UNIT * np.abs(value * y) + 2.0**-148 if op_type == "Geglu" else 0)


def hold_body(got: np.ndarray, op_type: str, x: np.ndarray) -> None:
    """A body forms 1 + erf, whose error is relative to 1: so to |x|, times the value."""
    expected, allowed = oracle(op_type, x)
    value, gate = np.split(np.abs(x), 2, axis=-1) if op_type == "Geglu" else (1.0, np.abs(x))
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= 2 * allowed + 4 * UNIT * value * gate).all()
