"""x' = x + (down - sigma) * (x - x_0) / sigma + up * z, up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2, down^2 = sigma'^2 - up^2"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from runtime.schedulers.base import Config, NoiseSource, drawn
from runtime.schedulers.euler import Euler


@dataclass(frozen=True)
class EulerAncestralConfig(Config):
    accepted: ClassVar = {**Config.accepted, "prediction_type": ("epsilon", "v_prediction")}

    timestep_spacing: str = "linspace"


class EulerAncestral(Euler):
    """Euler steps that go further down than they must and put noise back: the ancestral sampling of DDPM (Ho et al. 2020, alg. 2)
    in the sigmas of Karras et al. 2022, from k-diffusion. Draws noise at every step, at the last one too (where it has no weight)."""

    name = "euler_ancestral"
    class_name = "EulerAncestralDiscreteScheduler"
    config_class = EulerAncestralConfig

    def _step(self, index: int, noise_pred: np.ndarray, latents: np.ndarray, noise: NoiseSource | None) -> np.ndarray:
        sigma, sigma_next = float(self.sigmas[index]), float(self.sigmas[index + 1])
        up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        down = (sigma_next**2 - up**2) ** 0.5
        return latents + self._slope(noise_pred, latents, sigma) * (down - sigma) + up * drawn(noise, latents, self)
