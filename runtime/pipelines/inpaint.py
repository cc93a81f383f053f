"""A picture with a masked region and prompts to pictures with the region made anew.

A U-Net of 9 channels was trained for it and sees the mask and the masked picture's latents beside its own. With one of 4 channels
the known latents, noised as far, replace those outside the mask after each step (Lugmayr et al. 2022, without resampling).
"""

from __future__ import annotations

import numpy as np

from runtime.errors import InputError
from runtime.manifest import Package
from runtime.pipelines.autoencoder import mask_of, pixels_of
from runtime.pipelines.settings import Result, Settings
from runtime.pipelines.stable_diffusion import OnStep, Progress, StableDiffusion, opened
from runtime.session import Sessions


def inpaint(
    source: Package | Sessions, settings: Settings, on_step: OnStep | None = None, progress: Progress | None = None
) -> Result:
    """`settings.image` and `settings.mask` are the start.

    Errors: InputError for settings that the package can't do, CheckFailed for NaN and flat pictures.
    """
    if settings.image is None or settings.mask is None:
        raise InputError("inpainting needs an image and a mask")
    with opened(source) as sessions:
        diffusion = StableDiffusion(sessions, settings, on_step, progress)
        height, width = diffusion.settings.height, diffusion.settings.width
        shape = diffusion.latent_shape
        channels = diffusion.unet_inputs["sample"].shape[1]
        if channels not in (shape[1], 2 * shape[1] + 1):
            raise InputError(f"inpainting needs a U-Net of {shape[1]} or {2 * shape[1] + 1} channels: this one has {channels}")
        blends = channels == shape[1]
        only_noise = diffusion.settings.strength == 1.0
        conditioning = diffusion.encode_prompts()

        pixels = pixels_of(settings.image, height, width)
        mask = mask_of(settings.mask, height, width)
        if blends or not only_noise:
            known = diffusion.encode_image(pixels)
        noise = diffusion.normal(shape)
        if only_noise:
            latents = noise * np.float32(diffusion.scheduler.init_noise_sigma)
        else:
            latents = diffusion.scheduler.add_noise(known, noise, diffusion.timesteps[0])
        # a U-Net that blends has no use for it, but diffusers draws for it all the same, before the steps' own noise
        masked = diffusion.encode_image(pixels * (mask < 0.5))
        factor = height // shape[2]
        small_mask = mask[:, :, ::factor, ::factor]

        def blend(index: int, latents: np.ndarray) -> np.ndarray:
            last = index + 1 == len(diffusion.timesteps)
            outside = known if last else diffusion.scheduler.add_noise(known, noise, diffusion.timesteps[index + 1])
            return (1 - small_mask) * outside + small_mask * latents

        if blends:
            return diffusion.finish(diffusion.denoise(latents, conditioning, after_step=blend))
        more = np.concatenate([np.repeat(small_mask, shape[0], axis=0), masked], axis=1)
        return diffusion.finish(diffusion.denoise(latents, conditioning, more_channels=more))
