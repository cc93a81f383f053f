"""x_{t-1} = sqrt(a_{t-1}) x_0 + sqrt(1 - a_{t-1} - s^2) eps + s z, s = eta * sqrt((1 - a_{t-1}) / (1 - a_t) * (1 - a_t / a_{t-1}))"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from runtime.schedulers.base import Config, NoiseSource, Scheduler, alpha_at, clean, drawn
from runtime.schedulers.schedule import spaced_timesteps


@dataclass(frozen=True)
class DdimConfig(Config):
    """`eta` is our own key: 0 is deterministic, 1 is DDPM's variance. diffusers takes it as an argument of `step`.

    diffusers' default of clip_sample is True, which is meant for pixels; its Stable Diffusion pipelines turn it off, as is done here.
    """

    accepted: ClassVar = {**Config.accepted, "thresholding": (False, None)}

    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    eta: float = 0.0


class Ddim(Scheduler):
    """Denoising diffusion implicit models: Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16."""

    name = "ddim"
    class_name = "DDIMScheduler"
    config_class = DdimConfig
    config: DdimConfig

    def _plan(self, steps: int) -> np.ndarray:
        c = self.config
        return spaced_timesteps(c.timestep_spacing, steps, c.num_train_timesteps, c.steps_offset).round().astype(np.int64)

    def _step(self, index: int, noise_pred: np.ndarray, latents: np.ndarray, noise: NoiseSource | None) -> np.ndarray:
        c = self.config
        t = int(self.timesteps[index])
        alpha = alpha_at(self.alphas_cumprod, t, c.set_alpha_to_one)
        alpha_before = alpha_at(self.alphas_cumprod, t - c.num_train_timesteps // self.steps, c.set_alpha_to_one)
        x0 = clean(c.prediction_type, noise_pred, latents, alpha)
        if c.prediction_type == "epsilon":
            epsilon = noise_pred
        elif c.prediction_type == "v_prediction":
            epsilon = alpha**0.5 * noise_pred + (1 - alpha) ** 0.5 * latents
        else:
            epsilon = (latents - alpha**0.5 * x0) / (1 - alpha) ** 0.5
        if c.clip_sample:  # epsilon stays as it was, as in diffusers
            x0 = np.clip(x0, -c.clip_sample_range, c.clip_sample_range)
        variance = c.eta**2 * (1 - alpha_before) / (1 - alpha) * (1 - alpha / alpha_before)
        latents = alpha_before**0.5 * x0 + (1 - alpha_before - variance) ** 0.5 * epsilon
        return latents + variance**0.5 * drawn(noise, latents, self) if c.eta > 0 else latents
