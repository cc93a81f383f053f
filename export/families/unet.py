"""The U-Net of latent diffusion (Rombach et al. 2022) as a graph, with the conditions that its config asks for."""

from __future__ import annotations

from typing import Any

import torch

from export.component import Component
from export.families.latents import Latents
from export.weights import Checkpoint

AXES = {"sample": {0: "batch_size", 2: "height", 3: "width"}, "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"},
        "text_embeds": {0: "batch_size"}, "time_ids": {0: "batch_size"}, "timestep_cond": {0: "batch_size"},
        "out_sample": {0: "batch_size", 2: "height", 3: "width"}}


class UNet(torch.nn.Module):
    """sample [B, C, H, W], timestep [], encoder_hidden_states [B, S, D] -> out_sample [B, 4, H, W]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return result


class UNetWithGuidance(UNet):
    """Distilled with guidance (Meng et al. 2023): takes the embedding of its scale, timestep_cond [B, W], beside the others."""

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor,  # type: ignore[override]
                timestep_cond: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(sample, timestep, encoder_hidden_states, timestep_cond=timestep_cond, return_dict=False)[0]
        return result


class UNetWithSize(UNet):
    """SDXL's: takes the pooled text, text_embeds [B, P], and the sizes that a picture was trained with, time_ids [B, 6 or 5]
    (Podell et al. 2023, sections 2.2 and 2.3), beside the others; where it is distilled with guidance, timestep_cond [B, W] too."""

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor,  # type: ignore[override]
                text_embeds: torch.Tensor, time_ids: torch.Tensor, timestep_cond: torch.Tensor | None = None) -> torch.Tensor:
        result: torch.Tensor = self.model(sample, timestep, encoder_hidden_states, timestep_cond=timestep_cond, return_dict=False,
                                          added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids})[0]
        return result


def unet(checkpoint: Checkpoint, at: Latents) -> Component:
    """The denoiser, traced at these latents."""
    config = checkpoint.configs["unet"]
    tokens = max(int(part["max_position_embeddings"]) for name, part in checkpoint.configs.items() if name.startswith("text_encoder"))
    inputs = {
        "sample": torch.zeros(at.batch, int(config["in_channels"]), at.height, at.width),
        "timestep": torch.tensor(1.0),
        "encoder_hidden_states": torch.zeros(at.batch, tokens, int(config["cross_attention_dim"])),
    }
    module: type[UNet] = UNet
    if config.get("addition_embed_type") == "text_time":
        module = UNetWithSize
        pooled = int(checkpoint.configs["text_encoder_2"]["projection_dim"])
        inputs |= {"text_embeds": torch.zeros(at.batch, pooled), "time_ids": torch.zeros(at.batch, time_ids(checkpoint.configs))}
    if config.get("time_cond_proj_dim"):
        module = UNetWithGuidance if module is UNet else module
        inputs["timestep_cond"] = torch.zeros(at.batch, int(config["time_cond_proj_dim"]))
    return Component("unet", module(checkpoint.module("unet")), inputs, ("out_sample",), AXES, config)


def time_ids(configs: dict[str, dict[str, Any]]) -> int:
    """How many numbers the U-Net takes as `time_ids`, from what its added embedding reads beside the pooled text; 0 where it has none."""
    config = configs["unet"]
    if config.get("addition_embed_type") != "text_time":
        return 0
    sizes = int(config["projection_class_embeddings_input_dim"]) - int(configs["text_encoder_2"]["projection_dim"])
    return sizes // int(config["addition_time_embed_dim"])
