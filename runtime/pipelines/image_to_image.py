"""A picture and prompts to pictures: the image is noised back by a share of the steps and denoised again (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

import numpy as np

from runtime.errors import InputError
from runtime.manifest import Package
from runtime.pipelines.autoencoder import pixels_of
from runtime.pipelines.settings import Result, Settings
from runtime.pipelines.stable_diffusion import OnStep, Progress, StableDiffusion, opened
from runtime.session import Sessions


def image_to_image(
    source: Package | Sessions, settings: Settings, on_step: OnStep | None = None, progress: Progress | None = None
) -> Result:
    """`settings.image` is the start. Errors: InputError for settings that the package can't do, CheckFailed for NaN and flat pictures."""
    if settings.image is None:
        raise InputError("image to image needs an image")
    with opened(source) as sessions:
        diffusion = StableDiffusion(sessions, settings, on_step, progress)
        conditioning = diffusion.encode_prompts()
        return diffusion.finish(diffusion.denoise(noised(diffusion, settings.image), conditioning))


def noised(diffusion: StableDiffusion, image: np.ndarray) -> np.ndarray:
    """The latents to start from, float32 [pictures, channels, h, w]: the image's, uint8 [H, W, 3], noised to the first timestep."""
    known = diffusion.encode_image(pixels_of(image, diffusion.settings.height, diffusion.settings.width))
    return diffusion.scheduler.add_noise(known, diffusion.normal(known.shape), diffusion.timesteps[0])
