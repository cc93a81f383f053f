"""The weight files of one component of a diffusers folder, and their tensors as they are stored."""

from __future__ import annotations

from pathlib import Path

import torch

from export.architecture import read_json
from export.pickle_file import SUFFIXES, unpickled
from export.safetensors_file import mapped
from runtime.errors import InputError

STEMS = {"text_encoder": "model", "text_encoder_2": "model", "safety_checker": "model", "unet": "diffusion_pytorch_model",
         "vae": "diffusion_pytorch_model"}
PICKLE_STEMS = {"model": "pytorch_model", "diffusion_pytorch_model": "diffusion_pytorch_model"}


def weight_files(folder: Path, component: str, allow_pickle: bool) -> list[Path]:
    """The files with a component's weights: one, or shards named by an index; full precision before half, safetensors before pickles.

    Errors: InputError where there are none, a shard is missing, or there is only a pickle and `allow_pickle` is false.
    """
    stem = STEMS[component]
    for variant in ("", ".fp16"):
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return _shards(index)
    for variant in ("", ".fp16"):
        pickled = folder / f"{PICKLE_STEMS[stem]}{variant}.bin"
        if pickled.is_file():
            if not allow_pickle:
                unpickled(pickled, allow_pickle)  # refuses
            return [pickled]
    raise InputError(f"the component '{component}' has no weights: '{folder / stem}.safetensors' is missing")


def _shards(index: Path) -> list[Path]:
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    missing = next((name for name in names if not (index.parent / name).is_file()), None)
    if missing is not None or not names:
        raise InputError(f"'{index}' names the shard '{missing}', which is missing: copy or download it again")
    return [index.parent / name for name in names]


def read(files: list[Path], allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """Every tensor of the files, mapped."""
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= unpickled(file, allow_pickle) if file.suffix in SUFFIXES else mapped(file)
    return tensors
