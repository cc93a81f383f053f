from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.safetensors_file import BLOCK, first_not_finite, mapped
from runtime.errors import InputError


def save_raw(path: Path, header: dict[str, object], body: bytes, pad: int = 0) -> Path:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + pad)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.fixture
def some(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).to(torch.float16), "c": torch.randn(2, 2).to(torch.bfloat16),
               "d": torch.arange(4), "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3)}
    save_file(tensors, tmp_path / "some.safetensors", metadata={"format": "pt"})
    return tmp_path / "some.safetensors"


def test_mapped_tensors_are_those_that_safetensors_loads(some: Path) -> None:
    ours, theirs = mapped(some), load_file(some)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def test_writing_to_a_mapped_tensor_leaves_the_file_as_it_is(some: Path) -> None:
    before = some.read_bytes()
    mapped(some)["a"].zero_()
    assert some.read_bytes() == before


def test_a_header_that_leaves_tensors_unaligned_is_read_all_the_same(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4")
    path = save_raw(tmp_path / "x.safetensors", {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}, values.tobytes(), pad=3)
    assert torch.equal(mapped(path)["x"], torch.arange(6.0).reshape(2, 3))


def test_a_file_cut_inside_its_body_is_refused(some: Path) -> None:
    size = some.stat().st_size
    os.truncate(some, size - 1)
    with pytest.raises(InputError, match=rf"is truncated: {size - 1} bytes where its header needs {size}: copy or download it again"):
        mapped(some)


def test_a_file_cut_inside_its_header_is_refused(some: Path) -> None:
    os.truncate(some, 40)
    with pytest.raises(InputError, match=r"is truncated inside its header: 40 bytes of at least \d+: copy or download it again"):
        mapped(some)


def test_a_file_of_a_few_bytes_is_refused(some: Path) -> None:
    os.truncate(some, 5)
    with pytest.raises(InputError, match="is truncated: it has 5 bytes, less than a safetensors header"):
        mapped(some)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(InputError, match=r"is no safetensors file: its first bytes name a header of \d+ bytes"):
        mapped(tmp_path / "x.safetensors")


@pytest.mark.parametrize("header", [{"x": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}}, {"x": 3}, {"x": {"dtype": "F32"}}])
def test_a_header_without_sense_is_refused(tmp_path: Path, header: dict[str, object]) -> None:
    with pytest.raises(InputError, match="is no safetensors file that can be read"):
        mapped(save_raw(tmp_path / "x.safetensors", header, bytes(8)))


@pytest.mark.parametrize("offsets", [[0, 4], [8, 0], [-8, 0]])
def test_a_size_that_does_not_fit_the_shape_is_refused(tmp_path: Path, offsets: list[int]) -> None:
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}
    with pytest.raises(InputError, match="is damaged: the size of tensor 'x' does not fit its shape"):
        mapped(save_raw(tmp_path / "x.safetensors", header, bytes(8)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found(dtype: torch.dtype, value: float) -> None:
    tensors = {"good": torch.ones(5, dtype=dtype), "bad": torch.ones(BLOCK + 7, dtype=dtype)}
    assert first_not_finite(tensors) is None
    tensors["bad"][BLOCK + 3] = value
    assert first_not_finite(tensors) == "bad"


def test_large_values_whose_sum_overflows_are_finite() -> None:
    assert first_not_finite({"large": torch.full((100,), 3e38)}) is None
