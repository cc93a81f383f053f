"""FlashAttention and PartialSoftmaxAttention in float64, and the error that their kernels are allowed."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import onnx

from ..harness import UNIT, Shape, one_op

OPS = ("FlashAttention", "PartialSoftmaxAttention")
SHAPES = [  # batch, heads, queries, keys, dim
    (1, 1, 1, 1, 1),
    (2, 3, 1, 5, 1),
    (1, 2, 17, 9, 7),
    (2, 2, 50, 131, 8),
    (1, 8, 256, 77, 40),
    (1, 1, 200, 300, 96),
]
MASKS = ["none", "causal", "keys", "heads", "one"]


def node(op_type: str, q: Shape, k: Shape, mask: Shape = (None,) * 4, **options: Any) -> onnx.ModelProto:
    """A model of one op; strings in shapes are dynamic dimensions."""
    return one_op(op_type, {"q": q, "k": k, "v": k, "mask": mask}, q, **options)


def of_heads(op_type: str, heads: int, scale: float, **options: Any) -> onnx.ModelProto:
    return node(op_type, ("B", "Q", "C"), ("B", "K", "C"), heads=heads, scale=scale, **options)


def operands(shape: tuple[int, int, int, int, int], mask: str) -> dict[str, np.ndarray]:
    batch, heads, queries, keys, dim = shape
    generator = np.random.default_rng(zlib.crc32(repr((shape, mask)).encode()))
    q, k, v = (generator.normal(0.2, 1, (batch, tokens, heads * dim)) for tokens in (queries, keys, keys))
    masks = {
        "none": np.zeros((1, 1, 1, 1)),
        "causal": np.triu(np.full((1, 1, queries, keys), -np.inf), 1),
        "keys": np.where(generator.random((batch, 1, 1, keys)) < 0.4, -np.inf, 0),  # of some images all, where there are few keys
        "heads": generator.normal(0, 3, (1, heads, queries, keys)),
        "one": np.full((1, 1, 1, 1), -np.inf),  # masks all
    }
    if mask == "heads":
        masks[mask][0, -1, queries // 2] = -np.inf  # a whole row
    return {name: array.astype(np.float32) for name, array in (("q", q), ("k", k), ("v", v), ("mask", masks[mask]))}


def oracle(heads: int, scale: float, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the error that runtime/ops/attention/attention.h allows a kernel."""
    q, k, v = (each.astype(np.float64).reshape(*each.shape[:2], heads, -1).transpose(0, 2, 1, 3) for each in (q, k, v))
    mask = mask.astype(np.float64)
    scores = scale * (q @ k.swapaxes(2, 3)) + mask
    most = scores.max(axis=3, keepdims=True)
    terms = np.exp(scores - np.where(np.isinf(most), 0, most))
    total = terms.sum(axis=3, keepdims=True)
    y = (terms @ v) / np.where(total == 0, 1, total)
    magnitudes = np.where(terms > 0, abs(scale) * (np.abs(q) @ np.abs(k).swapaxes(2, 3)) + np.abs(mask), 0)
    allowed = UNIT * np.abs(v).max(axis=(2, 3), keepdims=True) * (2 + magnitudes.max(axis=3, keepdims=True))
    return tuple(each.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1) for each in (y, np.broadcast_to(allowed, y.shape)))
