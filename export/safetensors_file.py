"""A safetensors file that never enters memory: tensors as views of the mapped file.

Format: 8 bytes little-endian length of the header, the header (JSON: name -> dtype, shape, data_offsets), the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from runtime.errors import InputError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
BLOCK = 1 << 18  # elements that are looked at or made at once: what a core's cache holds
HEADER_LIMIT = 100_000_000  # bytes; the format's own limit

# a private mapping may be written to without touching the file; without a reservation it may exceed the machine's memory
NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


def mapped(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the file, as a view of its mapping. Errors: InputError where the file is truncated or no safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        entries, start = _read_header(path, file.read(8), file.read, size)
        mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    tensors = {}
    for name, (dtype, shape, offset) in entries.items():
        count = math.prod(shape)
        flat = torch.frombuffer(mapping, dtype=dtype, count=count, offset=start + offset) if count else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(shape)
    return tensors


def _read_header(path: Path, length_bytes: bytes, read: Callable[[int], bytes], size: int,
                 ) -> tuple[dict[str, tuple[torch.dtype, tuple[int, ...], int]], int]:
    """{name: (dtype, shape, offset)} and where the tensors' bytes begin."""
    if len(length_bytes) < 8:
        raise InputError(f"'{path}' is truncated: it has {size} bytes, less than a safetensors header: copy or download it again")
    length = struct.unpack("<Q", length_bytes)[0]
    if length > HEADER_LIMIT:
        raise InputError(f"'{path}' is no safetensors file: its first bytes name a header of {length} bytes")
    if 8 + length > size:
        raise InputError(f"'{path}' is truncated inside its header: {size} bytes of at least {8 + length}: copy or download it again")
    try:
        header = json.loads(read(length))
        header.pop("__metadata__", None)
        entries = {name: (DTYPES[entry["dtype"]], tuple(entry["shape"]), *entry["data_offsets"]) for name, entry in header.items()}
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape, *_) in entries.items()}
        wrong = next((name for name, (*_, begin, end) in entries.items() if begin < 0 or end - begin != sizes[name]), None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' is no safetensors file that can be read: {type(error).__name__}: {error}") from error
    if wrong is not None:
        raise InputError(f"'{path}' is damaged: the size of tensor '{wrong}' does not fit its shape")
    needed = 8 + length + max((end for *_, end in entries.values()), default=0)
    if needed > size:
        raise InputError(f"'{path}' is truncated: {size} bytes where its header needs {needed}: copy or download it again")
    return {name: (dtype, shape, begin) for name, (dtype, shape, begin, _) in entries.items()}, 8 + length


def first_not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """Name of the first tensor with a NaN or an infinity. One pass over the pages, block by block."""
    for name, tensor in tensors.items():
        flat = tensor.detach().reshape(-1)
        for start in range(0, flat.numel(), BLOCK):
            block = flat[start : start + BLOCK].to(torch.float32)
            # the sum is finite unless something is not, or it overflows: only then every element is looked at
            if not torch.isfinite(block.sum()) and not torch.isfinite(block).all():
                return name
    return None
