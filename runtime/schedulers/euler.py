"""x' = x + (sigma' - sigma) * (x - x_0) / sigma"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from runtime.schedulers import schedule
from runtime.schedulers.base import Config, NoiseSource, Scheduler


@dataclass(frozen=True)
class EulerConfig(Config):
    """sigma_min and sigma_max bound the Karras sigmas; without them the ends of the planned timesteps do."""

    accepted: ClassVar = {
        **Config.accepted,
        "interpolation_type": ("linear",),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "timestep_type": ("discrete", "continuous"),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_type: str = "discrete"
    final_sigmas_type: str = "zero"


class Euler(Scheduler):
    """Euler's method on the probability flow in sigma: Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without its correction.

    Latents are unscaled here: x = x_0 + sigma * noise. `timesteps` are float32 and may lie between the training steps.
    """

    name = "euler"
    class_name = "EulerDiscreteScheduler"
    config_class: ClassVar[type[Config]] = EulerConfig

    def _plan(self, steps: int) -> np.ndarray:
        c = self.config
        table = schedule.sigmas(finite(self.alphas_cumprod) if c.rescale_betas_zero_snr else self.alphas_cumprod)
        timesteps = schedule.spaced_timesteps(c.timestep_spacing, steps, c.num_train_timesteps, c.steps_offset).astype(np.float32)
        levels = schedule.at_timesteps(timesteps, table)
        last = 0.0
        if isinstance(c, EulerConfig):
            if c.use_karras_sigmas:
                smallest = levels[-1] if c.sigma_min is None else c.sigma_min
                largest = levels[0] if c.sigma_max is None else c.sigma_max
                levels = schedule.karras_sigmas(float(smallest), float(largest), steps)
                timesteps = schedule.timesteps_at(levels, table).astype(np.float32)
            if c.timestep_type == "continuous" and c.prediction_type == "v_prediction":  # EDM's conditioning, as SVD has it
                timesteps = np.float32(0.25) * np.log(levels.astype(np.float32))
            last = float(table[0]) if c.final_sigmas_type == "sigma_min" else 0.0
        self.sigmas = np.append(levels, last).astype(np.float32)
        return timesteps

    @property
    def init_noise_sigma(self) -> float:
        largest = float(self.sigmas.max())
        return largest if self.config.timestep_spacing in ("linspace", "trailing") else (largest**2 + 1) ** 0.5

    def scale_model_input(self, latents: np.ndarray, t: float) -> np.ndarray:
        """x / sqrt(sigma^2 + 1): unit variance, as the model was trained."""
        return latents / (float(self.sigmas[self.position(t)]) ** 2 + 1) ** 0.5

    def _step(self, index: int, noise_pred: np.ndarray, latents: np.ndarray, noise: NoiseSource | None) -> np.ndarray:
        sigma, sigma_next = float(self.sigmas[index]), float(self.sigmas[index + 1])
        return latents + self._slope(noise_pred, latents, sigma) * (sigma_next - sigma)

    def _slope(self, output: np.ndarray, latents: np.ndarray, sigma: float) -> np.ndarray:
        """dx / dsigma = (x - x_0) / sigma (Karras et al. 2022, eq. 3)."""
        if self.config.prediction_type == "epsilon":
            x0 = latents - sigma * output
        elif self.config.prediction_type == "v_prediction":
            x0 = output * (-sigma / (sigma**2 + 1) ** 0.5) + latents / (sigma**2 + 1)
        else:
            x0 = output
        return (latents - x0) / sigma

    def add_noise(self, latents: np.ndarray, noise: np.ndarray, t: float) -> np.ndarray:
        """Clean latents noised to the level of timestep t of the plan, unscaled: x_0 + sigma * noise."""
        return latents + float(self.sigmas[self.position(t)]) * noise


def finite(alphas_cumprod: np.ndarray) -> np.ndarray:
    """With zero terminal SNR the last sigma would be infinite: it gets the 4096 that diffusers gives it."""
    return np.append(alphas_cumprod[:-1], schedule.TERMINAL_ALPHA)
