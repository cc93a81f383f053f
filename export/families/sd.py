"""Stable Diffusion 1.x and 2.x, SD-Turbo and LCM: text encoder, U-Net, VAE encoder and decoder, safety checker where there is one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from export.component import Component, Parts
from export.families.latents import Latents, latents, scale_factor
from export.families.text import text_encoder
from export.families.unet import unet
from export.families.vae import vae_decoder, vae_encoder
from export.weights import Checkpoint

CHECKER_AXES = {"clip_input": {0: "batch_size"}, "images": {0: "batch_size", 1: "height", 2: "width"},
                "out_images": {0: "batch_size", 1: "height", 2: "width"}, "has_nsfw_concepts": {0: "batch_size"}}


def components(checkpoint: Checkpoint, size: tuple[int, int] | None, batch: int) -> Parts:
    """The components in the order of their use, each built when its turn comes so that one at a time is in memory.

    `size` is (height, width) in pixels of a static package, None for a dynamic one. Errors: InputError where the size fits no U-Net.
    """
    at = latents(checkpoint.configs, size, batch)
    made: Parts = [
        ("text_encoder", partial(text_encoder, checkpoint, at.batch)),
        ("unet", partial(unet, checkpoint, at)),
        ("vae_decoder", partial(vae_decoder, checkpoint, at)),
        ("vae_encoder", partial(vae_encoder, checkpoint, at)),
    ]
    return made + ([("safety_checker", partial(safety_checker, checkpoint, at))] if "safety_checker" in checkpoint.configs else [])


def scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's scheduler_config.json with the two corrections that diffusers' pipelines of this family make when they load it."""
    config = dict(checkpoint.scheduler)
    if config.get("steps_offset", 1) != 1:
        config["steps_offset"] = 1
    if config.get("clip_sample"):
        config["clip_sample"] = False
    return config


def pipeline(checkpoint: Checkpoint) -> dict[str, Any]:
    """The manifest's keys for this family's conditions: one text encoder's last state."""
    encoder = {"component": "text_encoder", "tokenizer": "tokenizer", "embeddings": "last_hidden_state", "pooled": ""}
    return {"text_encoders": [encoder], "time_ids": 0, "force_zeros_for_empty_prompt": False}


def index(checkpoint: Checkpoint) -> dict[str, Any]:
    """model_index.json without versions and scheduler."""
    configs = checkpoint.configs
    checked = "safety_checker" in configs
    inpaints = configs["unet"]["in_channels"] != configs["vae"]["latent_channels"]
    consistent = bool(configs["unet"].get("time_cond_proj_dim"))
    return {
        "_class_name": "StableDiffusionInpaintPipeline" if inpaints else "LatentConsistencyModelPipeline" if consistent else
                       "StableDiffusionPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"] if checked else [None, None],
        "requires_safety_checker": checked,
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"] if checked else [None, None],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


class SafetyChecker(torch.nn.Module):
    """clip_input [B, 3, 224, 224], images [B, H, W, 3] -> out_images (flagged ones black), has_nsfw_concepts bool [B].

    The arithmetic of diffusers' StableDiffusionSafetyChecker.forward_onnx, without writing into its input.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip_input: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.model.visual_projection(self.model.vision_model(clip_input)[1])
        special = _cosines(embedded, self.model.special_care_embeds) - self.model.special_care_embeds_weights
        # a picture near a special-care concept is judged a little more strictly on all the others
        adjustment = (special > 0).any(dim=1).float()[:, None] * 0.01
        concepts = _cosines(embedded, self.model.concept_embeds) - self.model.concept_embeds_weights + adjustment
        flagged = (concepts > 0).any(dim=1)
        return images * flagged.logical_not().float()[:, None, None, None], flagged


def _cosines(rows: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """[M, D], [N, D] -> the cosines between them [M, N]."""
    return torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(directions).transpose(0, 1)


def safety_checker(checkpoint: Checkpoint, at: Latents) -> Component:
    """The checker, on pictures of these latents."""
    scale = scale_factor(checkpoint.configs["vae"])
    inputs = {"clip_input": torch.zeros(at.batch, 3, 224, 224), "images": torch.zeros(at.batch, at.height * scale, at.width * scale, 3)}
    return Component("safety_checker", SafetyChecker(checkpoint.module("safety_checker")), inputs, ("out_images", "has_nsfw_concepts"),
                     CHECKER_AXES, checkpoint.configs["safety_checker"])
