"""WinogradConv, WinogradConvAdd and WinogradConvSilu in float64, and the error that their kernels and bodies are allowed."""

from __future__ import annotations

import zlib

import numpy as np
import onnx
import onnx_ir as ir
import torch

from graph_passes.ops.winograd_conv import pack

from ..harness import UNIT, Shape, one_op

OPS = ("WinogradConv", "WinogradConvAdd", "WinogradConvSilu")
TYPES = {"fp32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}
SHAPES = [  # of the input, and the channels that come out
    ((1, 1, 1, 1), 1),
    ((2, 3, 5, 7), 9),
    ((1, 4, 8, 8), 4),
    ((1, 5, 1, 64), 8),
    ((1, 64, 33, 31), 72),
    ((2, 40, 16, 12), 24),
    ((1, 6, 0, 4), 8),  # nothing to do
]


def model_of(op_type: str, x: Shape, weights: np.ndarray, tile: int, dtype: ir.DataType = ir.DataType.FLOAT, opset: int = 20,
             change: dict[str, int | None] | None = None) -> onnx.ModelProto:  # fmt: skip
    """A model of one op; strings in `x` are dynamic dimensions, `change` replaces attributes (None: leaves out)."""
    assert x is not None
    y = (x[0], len(weights), *x[2:])
    u = ir.to_proto(ir.Tensor(pack(weights, tile, dtype), dtype=dtype, name="u"))
    inputs: dict[str, Shape | onnx.TensorProto] = {"x": x, "u": u, "bias": ("B",)}
    if op_type.endswith("Add"):
        inputs["residual"] = y
    attributes = {key: value for key, value in {"tile": tile, "channels_out": len(weights), **(change or {})}.items() if value is not None}
    return one_op(op_type, inputs, y, opset, **attributes)


def operands(op_type: str, shape: tuple[int, ...], channels_out: int, mean: float = 0.0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Weights [O, C, 3, 3], and the other inputs by name."""
    rng = np.random.default_rng(zlib.crc32(repr((shape, channels_out, mean)).encode()))
    weights = rng.normal(size=(channels_out, shape[1], 3, 3)).astype(np.float32)
    feeds = {"x": rng.normal(mean, 1, shape), "bias": rng.normal(size=channels_out)}
    if op_type.endswith("Add"):
        feeds["residual"] = rng.normal(size=(shape[0], channels_out, *shape[2:]))
    return weights, {name: array.astype(np.float32) for name, array in feeds.items()}


def oracle(op_type: str, weights: np.ndarray, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The operator by its definition, in float64."""
    x = torch.from_numpy(feeds["x"]).double()
    y = torch.nn.functional.conv2d(x, torch.from_numpy(weights).double(), padding=1).numpy() if x.numel() else 0 * feeds["x"][:, :1]
    y = y + feeds["bias"].astype(np.float64).reshape(-1, 1, 1)
    if op_type == "WinogradConvAdd":
        y = y + feeds["residual"]
    return y / (1 + np.exp(-y)) if op_type == "WinogradConvSilu" else y


def hold(got: np.ndarray, op_type: str, weights: np.ndarray, feeds: dict[str, np.ndarray], error: float) -> None:
    """`error` is that of the sums, relative to what sums of so many random products amount to; a single one may be ten times off.

    Bias, residual and SiLU round the result itself: a few units in its last place.
    """
    expected = oracle(op_type, weights, feeds)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    if got.size:
        size = np.sqrt(weights[0].size * np.square(feeds["x"], dtype=np.float64).mean() * np.square(weights, dtype=np.float64).mean())
        assert np.sqrt(np.square(got - expected).mean()) <= 1.5 * error * size + 2 * UNIT * (1 + np.abs(expected).max())
        assert (np.abs(got - expected) <= 10 * error * size + 8 * UNIT * (1 + np.abs(expected))).all()
