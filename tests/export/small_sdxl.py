"""The seeded small SDXL and its refiner in a diffusers folder, and the same weights in the layout of the published single files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import small_model
import torch
from safetensors.torch import save_file

from export.weights import open_checkpoint

CLASSES = {"text_encoder": ("transformers", "CLIPTextModel"), "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
           "unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL")}


def parts(alias: str, work: Path) -> dict[str, Any]:
    """The modules of a small model, by component."""
    checkpoint = open_checkpoint(alias, None, work)
    return {name: checkpoint.module(name) for name in checkpoint.configs}


def save(folder: Path, parts: dict[str, Any], shard: str = "5GB") -> Path:
    """Writes a diffusers folder with tokenizers and scheduler, in shards of that size."""
    refines = "text_encoder" not in parts
    index: dict[str, Any] = {"_class_name": f"StableDiffusionXL{'Img2Img' if refines else ''}Pipeline", "text_encoder": [None, None],
                             "force_zeros_for_empty_prompt": not refines}
    for name, model in parts.items():
        model.save_pretrained(folder / name, max_shard_size=shard)
        index[name] = CLASSES[name]
        if name.startswith("text_encoder"):
            small_model.save_tokenizer(folder / name.replace("text_encoder", "tokenizer"))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "EulerDiscreteScheduler"}))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def to_ldm(parts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The modules' state under the names that Stability published."""
    states = {name: model.state_dict() for name, model in parts.items()}
    second = {name.removeprefix("text_model."): tensor for name, tensor in states["text_encoder_2"].items()}
    found = small_model.ldm_unet(states["unet"]) | small_model.ldm_vae(states["vae"])
    if "text_encoder" not in parts:
        return found | small_model.ldm_open_clip(second, "conditioner.embedders.0.model")
    first = {f"conditioner.embedders.0.transformer.text_model.{name}": tensor for name, tensor in states["text_encoder"].items()}
    return found | first | small_model.ldm_open_clip(second, "conditioner.embedders.1.model")


def save_ldm(path: Path, parts: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    save_file({name: tensor.to(dtype).contiguous().clone() for name, tensor in to_ldm(parts).items()}, path)
    return path
