"""The autoencoder of latent diffusion (Rombach et al. 2022) as two graphs. Scaling and sampling stay outside."""

from __future__ import annotations

from typing import Any

import torch

from export.component import Component
from export.families.latents import Latents, scale_factor
from export.weights import Checkpoint

ENCODER_AXES = {"sample": {0: "batch_size", 2: "sample_height", 3: "sample_width"},
                "latent_parameters": {0: "batch_size", 2: "sample_height / 8", 3: "sample_width / 8"}}
DECODER_AXES = {"latent_sample": {0: "batch_size", 2: "latent_height", 3: "latent_width"},
                "sample": {0: "batch_size", 2: "latent_height * 8", 3: "latent_width * 8"}}


class VaeEncoder(torch.nn.Module):
    """sample [B, 3, H, W] in -1..1 -> latent_parameters [B, 8, H/8, W/8]: mean and log variance, not yet scaled."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.quant_conv = model.quant_conv if model.quant_conv is not None else torch.nn.Identity()

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        moments: torch.Tensor = self.quant_conv(self.encoder(sample))
        return moments


class VaeDecoder(torch.nn.Module):
    """latent_sample [B, 4, H, W], already divided by the scaling factor -> sample [B, 3, 8H, 8W] in -1..1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.post_quant_conv = model.post_quant_conv if model.post_quant_conv is not None else torch.nn.Identity()

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        picture: torch.Tensor = self.decoder(self.post_quant_conv(latent_sample))
        return picture


def vae_encoder(checkpoint: Checkpoint, at: Latents) -> Component:
    """Pictures to latents, traced at pictures of these latents."""
    config = checkpoint.configs["vae"]
    scale = scale_factor(config)
    inputs = {"sample": torch.zeros(at.batch, int(config["in_channels"]), at.height * scale, at.width * scale)}
    return Component("vae_encoder", VaeEncoder(checkpoint.module("vae")), inputs, ("latent_parameters",), ENCODER_AXES, config)


def vae_decoder(checkpoint: Checkpoint, at: Latents) -> Component:
    """Latents to pictures, traced at these latents."""
    config = checkpoint.configs["vae"]
    inputs = {"latent_sample": torch.zeros(at.batch, int(config["latent_channels"]), at.height, at.width)}
    return Component("vae_decoder", VaeDecoder(checkpoint.module("vae")), inputs, ("sample",), DECODER_AXES, config)
