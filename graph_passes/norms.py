"""Normalization in primitive operators, for targets that have none of their own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import emit, emit_constant
from graph_passes.values import constant, dimensions, graph_of


def standardized(before: ir.Node, x: ir.Value, axes: range, epsilon: float) -> ir.Value:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) over `axes`, in nodes in front of `before`.

    The mean is subtracted before anything is squared: E[x^2] - E[x]^2 loses the digits of a large mean. The square is a product and
    no Pow, by which ONNX Runtime would know a LayerNormalization and put one back.
    """
    centered = emit(before, "Sub", [x, _mean(before, x, axes, "_mean")], suffix="_centered")
    square = emit(before, "Mul", [centered, centered], suffix="_square")
    variance = emit(before, "Add", [_mean(before, square, axes, "_variance"), _scalar(before, epsilon)], suffix="_epsilon")
    return emit(before, "Div", [centered, emit(before, "Sqrt", [variance], suffix="_deviation")], suffix="_standardized")


def scaled(before: ir.Node, value: ir.Value, scale: ir.Value, bias: ir.Value | None, trailing: int = 0) -> ir.Value:
    """value * scale + bias, where both are [C] and stand `trailing` axes in front of the last one; ones and zeros are left out."""
    if not _is_filled_with(scale, 1):
        value = emit(before, "Mul", [value, _column(before, scale, trailing, "_scale")], suffix="_scaled")
    if bias is not None and not _is_filled_with(bias, 0):
        value = emit(before, "Add", [value, _column(before, bias, trailing, "_bias")], suffix="_shifted")
    return value


def _mean(before: ir.Node, x: ir.Value, axes: range, suffix: str) -> ir.Value:
    """The mean over `axes`, one axis after the other, the last one first.

    A million numbers of a picture, added one by one in float32, leave a norm 100 dB from float64 in ONNX Runtime; the means of its rows
    and then the mean of those 142 dB. In float16 the sum alone could overflow. The axes of ReduceMean are an attribute up to opset 17,
    and an input from 18 on.
    """
    for axis in reversed(axes):
        name = suffix if axis == axes[0] else f"{suffix}_{axis}"
        if graph_of(before).opset_imports.get("", 18) < 18:
            x = emit(before, "ReduceMean", [x], {"axes": [axis], "keepdims": 1}, name)
        else:
            x = emit(before, "ReduceMean", [x, emit_constant(before, np.array([axis], np.int64))], {"keepdims": 1}, name)
    return x


def _column(before: ir.Node, value: ir.Value, trailing: int, suffix: str) -> ir.Value:
    """[C] as [C, 1, ...]; of a weight, `fold weights` makes a weight again."""
    if not trailing or len(dimensions(value) or ()) != 1:
        return value
    return emit(before, "Reshape", [value, emit_constant(before, np.array([-1] + [1] * trailing, np.int64))], suffix=suffix)


def _scalar(before: ir.Node, number: float) -> ir.Value:
    return emit_constant(before, np.array([number], np.float32))


def _is_filled_with(value: ir.Value, number: float) -> bool:
    array = constant(value)
    return array is not None and bool((array == number).all())
