"""x' = sqrt(a') f(x, t) + sqrt(1 - a') z, f = c_skip(t) x + c_out(t) x_0"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from runtime.errors import InputError
from runtime.schedulers.base import Config, NoiseSource, Scheduler, clean, drawn

SIGMA_DATA = 0.5  # Song et al. 2023, appendix C


@dataclass(frozen=True)
class LcmConfig(Config):
    """`original_inference_steps`: DDIM steps of the distillation, of which the steps are a subset. Spacing and offset have no say."""

    accepted: ClassVar = {**Config.accepted, "thresholding": (False, None)}

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    clip_sample: bool = False
    clip_sample_range: float = 1.0


class Lcm(Scheduler):
    """Latent consistency models: Luo et al. 2023 (arXiv 2310.04378), algorithm 3, with the boundary condition of eq. 6 (discrete).

    Draws noise at every step but the last.
    """

    name = "lcm"
    class_name = "LCMScheduler"
    config_class = LcmConfig
    config: LcmConfig

    def set_timesteps(self, steps: int, strength: float = 1.0) -> None:
        """With a `strength`, above 0 up to 1, all steps are taken from the last share of the distilled ones: `add_noise` at the first
        makes the latents to start from, as in diffusers' LatentConsistencyModelImg2ImgPipeline. Errors: InputError."""
        original = self.config.original_inference_steps
        if not 0 < strength <= 1:
            raise InputError(f"the strength {strength:g} is not above 0 and at most 1")
        self._distilled = int(original * strength)
        if self._distilled < steps <= original:
            raise InputError(
                f"a strength of {strength:g} leaves {self._distilled} of the {original} steps that this model was distilled to, too few "
                f"for {steps}: take fewer steps or more strength"
            )
        super().set_timesteps(steps)

    def _plan(self, steps: int) -> np.ndarray:
        original = self.config.original_inference_steps
        if steps > original:
            raise InputError(f"{steps} steps are not possible: this model was distilled to at most {original}; 4 to 8 are usual")
        distilled = np.arange(self._distilled, 0, -1) * (self.config.num_train_timesteps // original) - 1
        return distilled[np.floor(np.linspace(0, self._distilled, steps, endpoint=False)).astype(np.int64)]

    def _step(self, index: int, noise_pred: np.ndarray, latents: np.ndarray, noise: NoiseSource | None) -> np.ndarray:
        c = self.config
        t = int(self.timesteps[index])
        x0 = clean(c.prediction_type, noise_pred, latents, float(self.alphas_cumprod[t]))
        if c.clip_sample:
            x0 = np.clip(x0, -c.clip_sample_range, c.clip_sample_range)
        scaled = t * c.timestep_scaling
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
        denoised = out * x0 + skip * latents
        if index == len(self.timesteps) - 1:
            return denoised
        alpha = float(self.alphas_cumprod[self.timesteps[index + 1]])
        return alpha**0.5 * denoised + (1 - alpha) ** 0.5 * drawn(noise, latents, self)
