"""Stable Diffusion 1.x and 2.x: text encoder, U-Net, VAE encoder and decoder, and the safety checker where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from export.component import Component
from export.weights import Checkpoint
from runtime.errors import InputError

# Names of the axes as optimum gives them; its pipelines compute output shapes from these very strings.
TEXT_AXES = {"input_ids": {0: "batch_size", 1: "sequence_length"}, "last_hidden_state": {0: "batch_size", 1: "sequence_length"},
             "pooler_output": {0: "batch_size"}}
UNET_AXES = {"sample": {0: "batch_size", 2: "height", 3: "width"}, "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"},
             "out_sample": {0: "batch_size", 2: "height", 3: "width"}}
ENCODER_AXES = {"sample": {0: "batch_size", 2: "sample_height", 3: "sample_width"},
                "latent_parameters": {0: "batch_size", 2: "sample_height / 8", 3: "sample_width / 8"}}
DECODER_AXES = {"latent_sample": {0: "batch_size", 2: "latent_height", 3: "latent_width"},
                "sample": {0: "batch_size", 2: "latent_height * 8", 3: "latent_width * 8"}}
CHECKER_AXES = {"clip_input": {0: "batch_size"}, "images": {0: "batch_size", 1: "height", 2: "width"},
                "out_images": {0: "batch_size", 1: "height", 2: "width"}, "has_nsfw_concepts": {0: "batch_size"}}


class TextEncoder(torch.nn.Module):
    """input_ids int64 [B, S] -> last_hidden_state [B, S, D], pooler_output [B, D]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(input_ids=input_ids, return_dict=True)
        return output.last_hidden_state, output.pooler_output


class UNet(torch.nn.Module):
    """sample [B, C, H, W], timestep [], encoder_hidden_states [B, S, D] -> out_sample [B, 4, H, W]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return result


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


class SafetyChecker(torch.nn.Module):
    """clip_input [B, 3, 224, 224], images [B, H, W, 3] -> out_images (flagged ones black), has_nsfw_concepts bool [B].

    The arithmetic of diffusers' StableDiffusionSafetyChecker.forward_onnx, without writing into its input.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip_input: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = torch.nn.functional.normalize(self.model.visual_projection(self.model.vision_model(clip_input)[1]))
        special = embedded @ torch.nn.functional.normalize(self.model.special_care_embeds).T - self.model.special_care_embeds_weights
        # a picture near a special-care concept is judged a little more strictly on all the others
        adjustment = (special > 0).any(dim=1).float()[:, None] * 0.01
        concepts = embedded @ torch.nn.functional.normalize(self.model.concept_embeds).T - self.model.concept_embeds_weights + adjustment
        flagged = (concepts > 0).any(dim=1)
        return images * (1 - flagged.float())[:, None, None, None], flagged


def scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's scheduler_config.json with the two corrections that diffusers' pipelines of this family make when they load it."""
    config = dict(checkpoint.scheduler)
    if config.get("steps_offset", 1) != 1:
        config["steps_offset"] = 1
    if config.get("clip_sample"):
        config["clip_sample"] = False
    return config


def components(checkpoint: Checkpoint, size: tuple[int, int] | None, batch: int) -> list[tuple[str, Callable[[], Component]]]:
    """The components in the order of their use, each built when its turn comes so that one at a time is in memory.

    `size` is (height, width) in pixels of a static package; None for a dynamic one, which is then traced at a size that is no
    multiple of anything, so that nothing specializes (the U-Net's upsampling takes its sizes from the skip connections).
    Errors: InputError where the size fits no U-Net of this family.
    """
    unet, vae = checkpoint.configs["unet"], checkpoint.configs["vae"]
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    if size is not None and (size[0] % scale or size[1] % scale):
        raise InputError(f"{size[0]}x{size[1]} is not possible: height and width must be multiples of {scale}")
    height, width = (size[0] // scale, size[1] // scale) if size else (18, 26)
    tokens = int(checkpoint.configs["text_encoder"]["max_position_embeddings"])
    pictures = batch if size else 2

    def text_encoder() -> Component:
        ids = torch.zeros(pictures, tokens, dtype=torch.int64)
        module = TextEncoder(checkpoint.module("text_encoder"))
        return Component("text_encoder", module, {"input_ids": ids}, ("last_hidden_state", "pooler_output"), TEXT_AXES,
                         checkpoint.configs["text_encoder"])

    def denoiser() -> Component:
        inputs = {
            "sample": torch.zeros(pictures, int(unet["in_channels"]), height, width),
            "timestep": torch.tensor(1.0),
            "encoder_hidden_states": torch.zeros(pictures, tokens, int(unet["cross_attention_dim"])),
        }
        return Component("unet", UNet(checkpoint.module("unet")), inputs, ("out_sample",), UNET_AXES, unet)

    def vae_encoder() -> Component:
        inputs = {"sample": torch.zeros(pictures, int(vae["in_channels"]), height * scale, width * scale)}
        return Component("vae_encoder", VaeEncoder(checkpoint.module("vae")), inputs, ("latent_parameters",), ENCODER_AXES, vae)

    def vae_decoder() -> Component:
        inputs = {"latent_sample": torch.zeros(pictures, int(vae["latent_channels"]), height, width)}
        return Component("vae_decoder", VaeDecoder(checkpoint.module("vae")), inputs, ("sample",), DECODER_AXES, vae)

    def safety_checker() -> Component:
        inputs = {"clip_input": torch.zeros(pictures, 3, 224, 224), "images": torch.zeros(pictures, height * scale, width * scale, 3)}
        return Component("safety_checker", SafetyChecker(checkpoint.module("safety_checker")), inputs, ("out_images", "has_nsfw_concepts"),
                         CHECKER_AXES, checkpoint.configs["safety_checker"])

    made = [("text_encoder", text_encoder), ("unet", denoiser), ("vae_decoder", vae_decoder), ("vae_encoder", vae_encoder)]
    return made + ([("safety_checker", safety_checker)] if "safety_checker" in checkpoint.configs else [])
