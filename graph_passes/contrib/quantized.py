"""What com.microsoft's quantized operators compute, in standard operators of float32: MatMulNBits, QuantizeLinear, DequantizeLinear.

Constants are dequantized when they are read, and not before.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from graph_passes.rule import emit, emit_constant
from graph_passes.values import add_made, constant, graph_of, is_constant, lengths, stored

LARGEST = {ir.DataType.UINT16: 65535.0, ir.DataType.UINT8: 255.0}


def matmul_nbits(node: ir.Node) -> dict[int, ir.Value]:
    """x @ ((codes - 2^(bits-1)) * scales)': codes [N, blocks, bytes], low bits first, and a scale to each block."""
    rows, columns = (node.attributes[name].as_int() for name in ("K", "N"))
    compute = functools.partial(_matrix, node.inputs[1], node.inputs[2], node.attributes["bits"].as_int(), rows)
    return {0: emit(node, "MatMul", [node.inputs[0], _weight(node, compute, (rows, columns))], suffix="_product")}


def _matrix(codes: ir.Value | None, scales: ir.Value | None, bits: int, rows: int) -> ir.Tensor:
    packed, factors = stored(codes).numpy(), stored(scales).numpy()
    numbers = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    matrix = (numbers.astype(np.float32) - (1 << bits - 1)) * factors.reshape(*packed.shape[:2], 1)
    return ir.Tensor(np.ascontiguousarray(matrix.reshape(len(packed), -1)[:, :rows].T))


def quantize_linear(node: ir.Node) -> dict[int, ir.Value]:
    """min(max(round(x / scale) + zero, 0), 2^n - 1)."""
    x, scale, zero = node.inputs
    assert zero is not None
    assert zero.dtype is not None
    steps = emit(node, "Round", [emit(node, "Div", [x, scale], suffix="_divided")], suffix="_steps")
    code = emit(node, "Add", [steps, _number(node, zero)], suffix="_code")
    limits = [emit_constant(node, np.array(limit, np.float32)) for limit in (0.0, LARGEST[zero.dtype])]
    return {0: emit(node, "Cast", [emit(node, "Clip", [code, *limits], suffix="_clipped")], {"to": int(zero.dtype)}, "_integer")}


def dequantize_linear(node: ir.Node) -> dict[int, ir.Value]:
    """(code - zero) * scale; of constant codes a constant, with a scale to each row."""
    codes, scale, zero = [*node.inputs, None][:3]
    if is_constant(codes):
        return {0: _weight(node, functools.partial(_rows, codes, scale, constant(zero)), lengths(stored(codes)))}
    number = emit(node, "Cast", [codes], {"to": int(ir.DataType.FLOAT)}, "_number")
    return {0: emit(node, "Mul", [emit(node, "Sub", [number, _number(node, zero)], suffix="_centred"), scale], suffix="_value")}


def _rows(codes: ir.Value, scales: ir.Value | None, zero: np.ndarray | None) -> ir.Tensor:
    numbers, factors = (stored(value).numpy().astype(np.float32) for value in (codes, scales))
    numbers = numbers - (0 if zero is None else zero.astype(np.float32))
    return ir.Tensor(numbers * factors.reshape(-1, *[1] * (numbers.ndim - 1)))


def _number(node: ir.Node, zero: ir.Value | None) -> ir.Value:
    array = constant(zero)
    assert array is not None
    return emit_constant(node, array.astype(np.float32))


def _weight(node: ir.Node, compute: functools.partial[ir.Tensor], shape: tuple[int, ...]) -> ir.Value:
    return add_made(graph_of(node), f"{node.name}_weight", compute, ir.DataType.FLOAT, shape)
