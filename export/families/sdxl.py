"""SDXL base, SDXL-Turbo and the refiner (Podell et al. 2023): text encoders, U-Net with size conditions, VAE encoder and decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

from export.component import Parts
from export.families.latents import latents
from export.families.text import penultimate, text_encoder_2, text_encoder_with_states
from export.families.unet import time_ids, unet
from export.families.vae import vae_decoder, vae_encoder
from export.weights import Checkpoint
from runtime.errors import InputError

SIZES, SIZES_AND_SCORE = 6, 5  # original, crop and target; original, crop and the aesthetic score
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


def components(checkpoint: Checkpoint, size: tuple[int, int] | None, batch: int) -> Parts:
    """The components in the order of their use, each built when its turn comes so that one at a time is in memory; the refiner has no
    first text encoder.

    `size` is (height, width) in pixels of a static package, None for a dynamic one. Errors: InputError where the size fits no U-Net.
    """
    at = latents(checkpoint.configs, size, batch)
    first: Parts = [("text_encoder", partial(text_encoder_with_states, checkpoint, at.batch))]
    return [
        *(first if "text_encoder" in checkpoint.configs else []),
        ("text_encoder_2", partial(text_encoder_2, checkpoint, at.batch)),
        ("unet", partial(unet, checkpoint, at)),
        ("vae_decoder", partial(vae_decoder, checkpoint, at)),
        ("vae_encoder", partial(vae_encoder, checkpoint, at)),
    ]


def scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's scheduler_config.json: diffusers' pipelines of this family take it as it is."""
    return dict(checkpoint.scheduler)


def pipeline(checkpoint: Checkpoint) -> dict[str, Any]:
    """The manifest's keys for this family's conditions. Errors: InputError for a U-Net that takes other sizes than SDXL's do."""
    configs = checkpoint.configs
    sizes = time_ids(configs)
    if sizes not in (SIZES, SIZES_AND_SCORE):
        raise InputError(f"the U-Net of '{checkpoint.alias}' takes {sizes} numbers for the sizes of a picture, where SDXL's takes {SIZES} "
                         f"and its refiner's {SIZES_AND_SCORE}: it is of another architecture")
    encoders = [
        {"component": name, "tokenizer": tokenizer, "embeddings": penultimate(configs[name]), "pooled": pooled}
        for name, tokenizer, pooled in (("text_encoder", "tokenizer", ""), ("text_encoder_2", "tokenizer_2", "text_embeds"))
        if name in configs
    ]
    scores = {"aesthetic_score": AESTHETIC_SCORE, "negative_aesthetic_score": NEGATIVE_AESTHETIC_SCORE}
    return {"text_encoders": encoders, "time_ids": sizes, "force_zeros_for_empty_prompt": _zeros(checkpoint),
            **(scores if sizes == SIZES_AND_SCORE else {})}


def index(checkpoint: Checkpoint) -> dict[str, Any]:
    """model_index.json without versions and scheduler."""
    first = "text_encoder" in checkpoint.configs
    return {
        "_class_name": "StableDiffusionXLPipeline" if first else "StableDiffusionXLImg2ImgPipeline",
        "force_zeros_for_empty_prompt": _zeros(checkpoint),
        **({"requires_aesthetics_score": True} if time_ids(checkpoint.configs) == SIZES_AND_SCORE else {}),
        "text_encoder": ["transformers", "CLIPTextModel"] if first else [None, None],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"] if first else [None, None],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _zeros(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.options.get("force_zeros_for_empty_prompt", True))  # diffusers' default
