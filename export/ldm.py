"""Single-file checkpoints in the layout of the original LDM code (Rombach et al. 2022): their tensors under diffusers' names, as views.

U-Net and VAE go through diffusers' own key conversion, which only relabels tensors. The OpenCLIP text encoders of SD 2.x and SDXL are
converted here: diffusers copies their fused projections into memory, a view of each third is enough.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint, infer_diffusers_model_type

from export.aliases import Alias, find
from export.architecture import Architecture, of_alias
from runtime.errors import InputError

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
# SDXL's conditioner holds its text encoders by number: CLIP then OpenCLIP in the base model, OpenCLIP alone in the refiner
EMBEDDERS = "conditioner.embedders."
BASE_CLIP, BASE_OPEN_CLIP, REFINER_OPEN_CLIP = f"{EMBEDDERS}0.transformer.", f"{EMBEDDERS}1.model.", f"{EMBEDDERS}0.model."
ALIAS_OF_TYPE = {"v1": "sd15", "inpainting": "sd15", "v2": "sd21", "inpainting_v2": "sd21", "xl_base": "sdxl", "xl_refiner": "sdxl-refiner"}
BASE_STEPS = 875_000  # global_step of the SD 2.x base model, by which diffusers tells epsilon from v-prediction

OPEN_CLIP = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def require_ldm(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Errors: InputError where the file is not a whole LDM-style checkpoint."""
    texts = (BASE_CLIP, BASE_OPEN_CLIP) if _has(tensors, BASE_CLIP) else (REFINER_OPEN_CLIP,) if _has(tensors, EMBEDDERS) else (TEXT,)
    lacking = next((prefix for prefix in (UNET, VAE, *texts) if not _has(tensors, prefix)), None)
    if lacking == BASE_OPEN_CLIP:
        raise InputError(f"'{file}' is an SDXL checkpoint without its second text encoder: it has no tensor '{lacking}*'")
    if lacking is not None:
        raise InputError(f"'{file}' is no whole single-file checkpoint: it has no tensor '{lacking}*'")


def _has(tensors: dict[str, torch.Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def alias(tensors: dict[str, torch.Tensor], file: Path) -> Alias:
    """The alias with the file's structure, by its shapes. Errors: InputError for another kind of checkpoint."""
    kind = infer_diffusers_model_type(tensors)
    found = find(ALIAS_OF_TYPE[kind]) if kind in ALIAS_OF_TYPE else None
    if found is None:
        raise InputError(f"'{file}' is a checkpoint of the kind '{kind}'; this version takes single files of Stable Diffusion 1.x, 2.x and "
                         "XL")
    return found


def architecture(tensors: dict[str, torch.Tensor], file: Path) -> Architecture:
    """What the file's shapes say it is: SD 1.x or 2.x, text to image or inpainting, SDXL or its refiner; as diffusers tells them apart.

    Errors: InputError for another kind of checkpoint.
    """
    kind = infer_diffusers_model_type(tensors)
    named = alias(tensors, file)
    base = of_alias(named.name, named.family, named.configs)
    unet: dict[str, Any] = {**base.configs["unet"], "in_channels": 9 if kind.startswith("inpainting") else 4}
    scheduler = base.scheduler
    step = tensors.get("global_step")
    if kind == "inpainting_v2" or (kind == "v2" and step is not None and int(step) == BASE_STEPS):
        scheduler = {**scheduler, "prediction_type": "epsilon"}
        unet["sample_size"] = 64
    configs = {**base.configs, "unet": unet}
    return replace(base, name=file.stem, configs=configs, scheduler=scheduler)


def component(name: str, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of one component (text_encoder, text_encoder_2, unet, vae) as diffusers calls them; views, nothing is copied."""
    if name == "text_encoder_2":
        prefix = BASE_OPEN_CLIP if _has(tensors, BASE_CLIP) else REFINER_OPEN_CLIP
        found = {f"text_model.{key}": tensor for key, tensor in _open_clip(tensors, prefix, int(config["num_hidden_layers"])).items()}
        projection = tensors.get(f"{prefix}text_projection")  # [width, projection]: it multiplies from the right
        return found if projection is None else found | {"text_projection.weight": projection.T}
    if name == "text_encoder":
        return _text_encoder(tensors, int(config["num_hidden_layers"]))
    prefix, convert = {"unet": (UNET, convert_ldm_unet_checkpoint), "vae": (VAE, convert_ldm_vae_checkpoint)}[name]
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    converted: dict[str, torch.Tensor] = convert(own, config)
    return converted


def _text_encoder(tensors: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    for clip in (f"{TEXT}transformer.", BASE_CLIP):  # SD 1.x and SDXL: transformers' own names
        if _has(tensors, clip):
            return {key.removeprefix(clip): tensor for key, tensor in tensors.items() if key.startswith(clip)}
    return _open_clip(tensors, f"{TEXT}model.", layers)


def _open_clip(tensors: dict[str, torch.Tensor], prefix: str, layers: int) -> dict[str, torch.Tensor]:
    """The first `layers` blocks of an OpenCLIP text transformer and what stands around them, by transformers' names."""
    found = {}
    for key, tensor in tensors.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if name in OPEN_CLIP:
            found[OPEN_CLIP[name]] = tensor
        elif name.startswith("transformer.resblocks."):
            index, _, rest = name.removeprefix("transformer.resblocks.").partition(".")
            if int(index) < layers:  # SD 2.x conditions on the penultimate layer: the last is in the file and not in the model
                found |= {f"encoder.layers.{index}.{end}": part for end, part in _block(rest, tensor).items()}
    return found


def _block(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One tensor of an OpenCLIP block; the fused projection becomes three."""
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        return {f"self_attn.{part}_proj.{kind}": third for part, third in zip("qkv", tensor.chunk(3), strict=True)}
    layer, _, kind = name.rpartition(".")
    return {f"{OPEN_CLIP_BLOCK.get(layer, layer)}.{kind}": tensor}
