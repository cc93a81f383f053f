"""A model of one operator, as the bytes of an ONNX file, without the onnx package: to measure what the operator costs.

Protocol buffers as in `runtime.onnx_file`, which reads them; the numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

IR_VERSION, OPSET = 8, 20
FLOAT, BFLOAT16 = 1, 16  # TensorProto.DataType
_INT, _INTS = 2, 7  # AttributeProto.AttributeType


def one_op(
    op_type: str,
    domain: str,
    inputs: Mapping[str, Sequence[int]],
    weights: Mapping[str, np.ndarray],
    output: Sequence[int],
    attributes: Mapping[str, int | Sequence[int]],
    bfloat16: Collection[str] = (),
) -> bytes:
    """A model that applies the operator to `inputs` {name: shape}, then `weights`, and gives `y` of shape `output`.

    Inputs are float32, those in `bfloat16` apart. Weights of float32 are float32; those of uint16 are the upper halves of float32
    numbers, bfloat16.
    """
    node = b"".join(
        [
            *(_text(1, name) for name in (*inputs, *weights)),
            _text(2, "y"),
            _text(4, op_type),
            *(_message(5, _attribute(name, value)) for name, value in attributes.items()),
            _text(7, domain),
        ]
    )
    graph = [_message(1, node), _text(2, op_type)]
    graph += [_message(5, _tensor(name, array)) for name, array in weights.items()]
    graph += [_message(11, _port(name, shape, BFLOAT16 if name in bfloat16 else FLOAT)) for name, shape in inputs.items()]
    graph += [_message(12, _port("y", output, FLOAT))]
    opsets = [_message(8, _text(1, each) + _number(2, version)) for each, version in {"": OPSET, domain: 1 if domain else OPSET}.items()]
    return b"".join([_number(1, IR_VERSION), _message(7, b"".join(graph)), *opsets])


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, _INT)
    return _text(1, name) + b"".join(_number(8, each) for each in value) + _number(20, _INTS)


def _tensor(name: str, array: np.ndarray) -> bytes:
    kind = {np.dtype(np.float32): FLOAT, np.dtype(np.uint16): BFLOAT16}[array.dtype]
    sizes = b"".join(_number(1, size) for size in array.shape)
    return sizes + _number(2, kind) + _text(8, name) + _message(9, array.tobytes())


def _port(name: str, shape: Sequence[int], kind: int) -> bytes:
    sizes = b"".join(_message(1, _number(1, size)) for size in shape)
    return _text(1, name) + _message(2, _message(1, _number(1, kind) + _message(2, sizes)))


def _text(number: int, value: str) -> bytes:
    return _message(number, value.encode())


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """A number of 0 or more, seven bits to a byte, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
