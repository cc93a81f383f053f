"""ONNX Runtime's own operators in float64 numpy, as docs/ContribOperators.md and its operator schemas define them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray


def group_norm(x: Array, gamma: Array, beta: Array, *, groups: int, activation: int, epsilon: float, channels_last: int) -> Array:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta over groups of channels of NHWC or NCHW; 1 is SiLU."""
    pictures = x if channels_last else x.transpose(0, 2, 3, 1)
    result = np.empty_like(pictures)
    width = pictures.shape[3] // groups
    for image in range(len(pictures)):
        for first in range(0, pictures.shape[3], width):
            group = pictures[image, :, :, first : first + width]
            result[image, :, :, first : first + width] = (group - group.mean()) / math.sqrt(group.var() + epsilon)
    result = result * gamma + beta
    result = result / (1 + np.exp(-result)) if activation else result
    return result if channels_last else result.transpose(0, 3, 1, 2)


def skip_group_norm(x: Array, gamma: Array, beta: Array, skip: Array, bias: Array | None = None, **attributes: Any) -> tuple[Array, Array]:
    """s = x + skip + bias, normalized, and s. skip is [N, H, W, C], [N, 1, 1, C] or [N, C]."""
    total = x + (skip[:, None, None] if skip.ndim == 2 else skip) + (0 if bias is None else bias)
    return group_norm(total, gamma, beta, **attributes), total


def bias_split_gelu(x: Array, bias: Array) -> Array:
    """After adding the bias, the left half times the exact GELU of the right one."""
    left, right = np.split(x + bias, 2, axis=2)
    return left * right * 0.5 * (1 + np.vectorize(math.erf)(right / math.sqrt(2)))


def bias_add(x: Array, bias: Array, skip: Array) -> Array:
    return x + bias + skip


def nhwc_conv(x: Array, weight: Array, bias: Array, *, pads: tuple[int, ...], strides: tuple[int, int]) -> Array:
    """x [N, H, W, C], weight [M, kH, kW, C]."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height, width = weight.shape[1:3]
    rows = range(0, padded.shape[1] - height + 1, strides[0])
    columns = range(0, padded.shape[2] - width + 1, strides[1])
    windows = [[np.tensordot(padded[:, y : y + height, z : z + width], weight, ((1, 2, 3), (1, 2, 3))) for z in columns] for y in rows]
    return np.array(windows).transpose(2, 0, 1, 3) + bias


def multi_head_attention(
    query: Array, key: Array | None, value: Array | None, mask: Array | None, *, num_heads: int, scale: float
) -> Array:
    """The query is [B, S, D], or QKV as [B, S, heads, 3, H]; the key [B, L, D], or KV as [B, L, heads, 2, H]."""
    if key is None:
        q, k, v = (query[:, :, :, index] for index in range(3))
    else:
        parts = (key[:, :, :, 0], key[:, :, :, 1]) if value is None else (key, value)
        q, k, v = (each.reshape(*each.shape[:2], num_heads, -1) for each in (query, *parts))
    scores = np.einsum("bsnh,blnh->bnsl", q, k) * scale + (0 if mask is None else mask)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bnsl,blnh->bsnh", weights, v).reshape(*query.shape[:2], -1)


def skip_layer_normalization(
    x: Array, skip: Array, gamma: Array, beta: Array, bias: Array | None = None, *, epsilon: float
) -> tuple[Array, Array]:
    """Layer normalization of s = x + skip + bias, and s."""
    total = x + skip + (0 if bias is None else bias)
    centred = total - total.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * gamma + beta, total
