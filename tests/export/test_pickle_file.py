"""Pickles are read where that is allowed, and give tensors alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_model
import torch
from folders import copy, same

from export.weights import open_checkpoint
from runtime.errors import InputError


def test_a_pickle_is_refused_unless_asked_for(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    tensors = small_model.to_ldm(*(parts[name].state_dict() for name in ("unet", "vae", "text_encoder")), open_clip=False)
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors, "global_step": 470_000}, file)
    with pytest.raises(InputError, match=r"is a pickle, which can run code when it is read: convert it .*, or pass --allow-pickle"):
        open_checkpoint(str(small_folder), str(file), tmp_path / "work")
    checkpoint = open_checkpoint(str(small_folder), str(file), tmp_path / "work", allow_pickle=True)
    assert same(checkpoint.module("unet"), parts["unet"])


def test_a_folder_of_pickles_is_refused_unless_asked_for(small_folder: Path, parts: dict, tmp_path: Path) -> None:
    folder = copy(small_folder, tmp_path)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(parts["vae"].state_dict(), folder / "vae" / "diffusion_pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.bin' is a pickle"):
        open_checkpoint(str(folder), None, tmp_path)
    assert same(open_checkpoint(str(folder), None, tmp_path, allow_pickle=True).module("vae"), parts["vae"])


class Harm:
    ran = False

    def __reduce__(self) -> tuple:
        return (setattr, (Harm, "ran", True))


def test_a_pickle_with_code_is_refused_even_so(small_folder: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": Harm()}}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="holds more than tensors and is refused"):
        open_checkpoint(str(small_folder), str(tmp_path / "x.ckpt"), tmp_path, allow_pickle=True)
    assert not Harm.ran


def test_a_truncated_pickle_is_refused(small_folder: Path, tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1000)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be read, it is damaged or truncated"):
        open_checkpoint(str(small_folder), str(tmp_path / "x.pt"), tmp_path, allow_pickle=True)
