"""Prompts to pictures."""

from __future__ import annotations

import numpy as np

from runtime.errors import InputError
from runtime.manifest import Package
from runtime.pipelines.settings import Result, Settings
from runtime.pipelines.size_conditioning import REFINER
from runtime.pipelines.stable_diffusion import OnStep, Progress, StableDiffusion, opened
from runtime.session import Sessions


def text_to_image(
    source: Package | Sessions, settings: Settings, on_step: OnStep | None = None, progress: Progress | None = None
) -> Result:
    """Errors: InputError for settings that the package can't do, CheckFailed for NaN and flat pictures."""
    with opened(source) as sessions:
        if sessions.package.manifest.pipeline.get("time_ids", 0) == REFINER:
            raise InputError(
                f"'{sessions.package.path}' is a refiner, which begins no picture: give it to a base package (--refiner), "
                "or give it a picture to refine (--image)"
            )
        diffusion = StableDiffusion(sessions, settings, on_step, progress)
        conditioning = diffusion.encode_prompts()
        return diffusion.finish(diffusion.denoise(noise(diffusion, settings), conditioning))


def noise(diffusion: StableDiffusion, settings: Settings) -> np.ndarray:
    """The latents to start from, float32 [pictures, channels, h, w]: pure noise, the seeds' or what is given. Errors: InputError."""
    shape = diffusion.latent_shape
    if settings.latents is not None and settings.latents.shape != shape:
        raise InputError(f"the latents are {list(settings.latents.shape)} where these settings need {list(shape)}")
    drawn = diffusion.normal(shape) if settings.latents is None else settings.latents.astype(np.float32)
    return drawn * np.float32(diffusion.scheduler.init_noise_sigma)
