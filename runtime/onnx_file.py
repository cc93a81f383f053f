"""What an ONNX file says of itself, read from its bytes without the onnx package: opsets, custom ops, external data.

Protocol buffers are sequences of (field number, wire type, value), see protobuf.dev/programming-guides/encoding; the numbers below
are those of onnx.proto3. Weights are skipped and not read, so that a file of gigabytes takes milliseconds.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import InputError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL = {"graph": 7, "opset_import": 8, "functions": 25}
_OPSET = {"domain": 1, "version": 2}
_GRAPH = {"node": 1, "initializer": 5, "sparse_initializer": 15}
_FUNCTION = {"node": 7}
_NODE = {"op_type": 4, "attribute": 5, "domain": 7}
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_TEXT = 1, 3, 4
_ATTRIBUTE = {"t": 5, "g": 6, "tensors": 10, "graphs": 11, "sparse_tensor": 22, "sparse_tensors": 23}
_SPARSE = {"values": 1, "indices": 2}
CONTEXT = ("com.microsoft", "EPContext")  # the operator that stands for a compiled graph
_TENSOR = {"external_data": 13}
_ENTRY = {"key": 1, "value": 2}


@dataclass
class OnnxFile:
    """`opsets` {domain: version}, "" for ONNX's own; `operators` {(domain, op): nodes}, functions' bodies not counted;

    `external` {location: bytes that the file must have at least}, context binaries of compiled graphs among them.
    """

    opsets: dict[str, int] = field(default_factory=dict)
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    external: dict[str, int] = field(default_factory=dict)


def read(path: Path) -> OnnxFile:
    """Reads the structure of a file. Errors: InputError where it is no ONNX model or ends too early."""
    found = OnnxFile()
    try:
        with path.open("rb") as file:
            # closed when the last view of it is gone: an error's traceback may still hold some
            _model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), found)
    except (ValueError, IndexError, RecursionError) as error:
        raise InputError(f"'{path.name}' is no ONNX model, or it is cut short: {error}") from error
    if "" not in found.opsets:
        raise InputError(f"'{path.name}' is no ONNX model: it names no opset")
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of a message: integers as they are, everything with a length as a view."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
        elif wire == _BYTES:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError(f"a field of {length} bytes where {len(data) - position} are left")
            yield number, data[position : position + length]
            position += length
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
            if position > len(data):
                raise ValueError("a number that is cut short")
        else:
            raise ValueError(f"the wire type {wire}, which ONNX does not use")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _messages(data: memoryview, numbers: dict[str, int]) -> Iterator[tuple[str, memoryview]]:
    """(name, content) of the named fields that hold messages or text."""
    names = {number: name for name, number in numbers.items()}
    for number, value in _fields(data):
        if number in names and isinstance(value, memoryview):
            yield names[number], value


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8")


def _model(data: memoryview, found: OnnxFile) -> None:
    for name, value in _messages(data, _MODEL):
        if name == "graph":
            _graph(value, found)
        elif name == "functions":
            for _, node in _messages(value, _FUNCTION):
                _node(node, found, counted=False)
        else:
            domain = "".join(_text(text) for field_name, text in _messages(value, _OPSET) if field_name == "domain")
            version = [number for field_number, number in _fields(value) if field_number == _OPSET["version"]]
            found.opsets["" if domain == "ai.onnx" else domain] = int(version[-1]) if version else 0


def _graph(data: memoryview, found: OnnxFile) -> None:
    for name, value in _messages(data, _GRAPH):
        if name == "node":
            _node(value, found)
        elif name == "initializer":
            _tensor(value, found)
        else:
            _sparse(value, found)


def _node(data: memoryview, found: OnnxFile, counted: bool = True) -> None:
    domain = op_type = ""
    attributes = []
    for name, value in _messages(data, _NODE):
        if name == "op_type":
            op_type = _text(value)
        elif name == "domain":
            domain = _text(value)
        else:
            _attribute(value, found)
            attributes.append(value)
    if (domain, op_type) == CONTEXT:
        _context(attributes, found)
    if counted:
        found.operators["" if domain == "ai.onnx" else domain, op_type] += 1


def _context(attributes: list[memoryview], found: OnnxFile) -> None:
    """A compiled graph: with embed_mode 0 (ONNX Runtime's default is 1) its binary is the file that ep_cache_context names."""
    location, embedded = "", True
    for attribute in attributes:
        values = dict(_fields(attribute))
        name, text = (bytes(view) if isinstance(view := values.get(key), memoryview) else b"" for key in (_ATTRIBUTE_NAME, _ATTRIBUTE_TEXT))
        if name == b"embed_mode":
            embedded = bool(values.get(_ATTRIBUTE_INTEGER, 0))
        elif name == b"ep_cache_context":
            location = text.decode("utf-8", "replace")  # embedded, it is no text
    if location and not embedded:
        found.external.setdefault(location, 1)


def _attribute(data: memoryview, found: OnnxFile) -> None:
    for name, value in _messages(data, _ATTRIBUTE):
        if name in ("t", "tensors"):
            _tensor(value, found)
        elif name in ("g", "graphs"):
            _graph(value, found)
        else:
            _sparse(value, found)


def _sparse(data: memoryview, found: OnnxFile) -> None:
    for _, tensor in _messages(data, _SPARSE):
        _tensor(tensor, found)


def _tensor(data: memoryview, found: OnnxFile) -> None:
    entries = {}
    for _, entry in _messages(data, _TENSOR):
        texts = {name: _text(value) for name, value in _messages(entry, _ENTRY)}
        entries[texts.get("key", "")] = texts.get("value", "")
    if entries:
        location = entries.get("location", "")
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
        if offset < 0 or length < 0:
            raise ValueError(f"external data of '{location}' at {offset} with {length} bytes")
        end = offset + length
        found.external[location] = max(found.external.get(location, 0), end)
