"""Prompts to pictures."""

from __future__ import annotations

import numpy as np

from runtime.errors import InputError
from runtime.manifest import Package
from runtime.pipelines.settings import Result, Settings
from runtime.pipelines.stable_diffusion import OnStep, Progress, StableDiffusion, opened
from runtime.session import Sessions


def text_to_image(
    source: Package | Sessions, settings: Settings, on_step: OnStep | None = None, progress: Progress | None = None
) -> Result:
    """Errors: InputError for settings that the package can't do, CheckFailed for NaN and flat pictures."""
    with opened(source) as sessions:
        diffusion = StableDiffusion(sessions, settings, on_step, progress)
        shape = diffusion.latent_shape
        if settings.latents is not None and settings.latents.shape != shape:
            raise InputError(f"the latents are {list(settings.latents.shape)} where these settings need {list(shape)}")
        embeddings = diffusion.encode_prompts()
        noise = diffusion.normal(shape) if settings.latents is None else settings.latents.astype(np.float32)
        latents = noise * np.float32(diffusion.scheduler.init_noise_sigma)
        return diffusion.finish(diffusion.denoise(latents, embeddings))
