"""Checkpoints saved with torch.save (.ckpt, .bin, .pt, .pth): pickles, which can run code when read, so they need to be asked for."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from runtime.errors import InputError

SUFFIXES = (".ckpt", ".bin", ".pt", ".pth")


def unpickled(path: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """The file's tensors, mapped where the format allows it; no code of the file is run.

    Errors: InputError where pickles are not allowed, or the file holds more than tensors or is damaged.
    """
    if not allow_pickle:
        raise InputError(f"'{path}' is a pickle, which can run code when it is read: convert it to .safetensors, or pass --allow-pickle")
    try:
        loaded = _load(path)
    except pickle.UnpicklingError as error:
        raise InputError(f"'{path}' holds more than tensors and is refused: convert it to .safetensors where you trust it") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"'{path}' cannot be read, it is damaged or truncated: {type(error).__name__}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"'{path}' holds a {type(loaded).__name__} and no dictionary of tensors")
    state = loaded.get("state_dict", loaded)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if isinstance(loaded.get("global_step"), int):
        tensors["global_step"] = torch.tensor(loaded["global_step"])
    return tensors


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6 cannot be mapped
