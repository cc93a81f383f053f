"""The manifest's `pipeline`: what runs the components together, and the defaults of a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from export.families import family_of
from export.families.latents import scale_factor
from export.weights import Checkpoint
from runtime import schedulers
from runtime.errors import InputError


@dataclass(frozen=True)
class Preset:
    """Steps, guidance scale and the strength of image to image with which a kind of model is used."""

    steps: int
    guidance: float
    strength: float


EMBEDDED = Preset(20, 4.0, 0.8)  # models/tiny
STABLE_DIFFUSION = Preset(20, 7.5, 0.8)
SDXL = Preset(30, 5.0, 0.3)
# Adversarially distilled for few steps without guidance (Sauer et al. 2023): SDXL-Turbo, SD-Turbo.
TURBO = Preset(1, 0.0, 0.5)
# Distilled with guidance as an input (Luo et al. 2023, LCM).
CONSISTENCY = Preset(4, 8.5, 0.8)


def preset(checkpoint: Checkpoint) -> Preset:
    """By what the configs say: an input for guidance is a consistency model's; no published model but those for few steps spaces its
    timesteps from the last one back, unless its schedule ends at zero signal (Lin et al. 2024)."""
    if checkpoint.configs["unet"].get("time_cond_proj_dim"):
        return CONSISTENCY
    if checkpoint.scheduler.get("timestep_spacing") == "trailing" and not checkpoint.scheduler.get("rescale_betas_zero_snr"):
        return TURBO
    if checkpoint.alias == "tiny":
        return EMBEDDED
    return STABLE_DIFFUSION if checkpoint.family == "sd" else SDXL


def pipeline(checkpoint: Checkpoint, height: int | None, width: int | None, batch: int, dynamic: bool) -> dict[str, Any]:
    """The keys are those of runtime.manifest.Manifest. `height` and `width` are in pixels, None for the model's own.

    Errors: InputError for sizes that are not possible.
    """
    unet, vae = checkpoint.configs["unet"], checkpoint.configs["vae"]
    factor = scale_factor(vae)
    for name, side in (("height", height), ("width", width)):
        if side is not None and (side <= 0 or side % factor):
            raise InputError(f"a {name} of {side} is not possible: it must be a positive multiple of {factor}")
    if batch < 1:
        raise InputError(f"a batch of {batch} is not possible: give 1 or more")
    own = int(unet["sample_size"]) * factor
    return {
        "family": checkpoint.family,
        "height": height or own,
        "width": width or own,
        "batch": 0 if dynamic else batch,
        "dynamic": dynamic,
        "vae_scale_factor": factor,
        "scaling_factor": float(vae.get("scaling_factor", 0.18215)),
        "force_upcast": bool(vae.get("force_upcast", False)),
        "latent_channels": int(vae["latent_channels"]),
        "prediction_type": checkpoint.scheduler.get("prediction_type", "epsilon"),
        "scheduler": schedulers.make(checkpoint.scheduler).name,
        **asdict(preset(checkpoint)),
        **family_of(checkpoint).pipeline(checkpoint),
    }
