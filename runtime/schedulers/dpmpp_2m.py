"""x' = (s' / s) x - a' (exp(-h) - 1) D, D = x_0 + (h / h_before) (x_0 - x_0_before) / 2, h = lambda' - lambda, lambda = log(a / s)"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from runtime.schedulers import schedule
from runtime.schedulers.base import Config, NoiseSource, Scheduler, clean
from runtime.schedulers.euler import finite

FEW_STEPS = 15  # below it the last step is of first order: the second order is unstable there (Lu et al. 2022, section 6)


@dataclass(frozen=True)
class DpmSolverConfig(Config):
    """sigma_min and sigma_max bound the Karras sigmas; without them the ends of the training schedule do."""

    accepted: ClassVar = {
        **Config.accepted,
        "algorithm_type": ("dpmsolver++",),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),  # DEIS's and UniPC's, which diffusers reads as midpoint
        "solver_order": (2,),
        "thresholding": (False, None),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "use_lu_lambdas": (False, None),
        "use_flow_sigmas": (False, None),
        "lambda_min_clipped": (-math.inf, None),
        "variance_type": (None,),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    lower_order_final: bool = True
    euler_at_final: bool = False
    final_sigmas_type: str = "zero"


class DpmSolverPlusPlus2M(Scheduler):
    """DPM-Solver++(2M), midpoint: Lu et al. 2022 (arXiv 2211.01095), algorithm 2."""

    name = "dpmpp_2m"
    class_name = "DPMSolverMultistepScheduler"
    config_class = DpmSolverConfig
    config: DpmSolverConfig

    def _plan(self, steps: int) -> np.ndarray:
        c = self.config
        table = schedule.sigmas(finite(self.alphas_cumprod) if c.rescale_betas_zero_snr else self.alphas_cumprod)
        if c.use_karras_sigmas:
            smallest = table[0] if c.sigma_min is None else c.sigma_min
            largest = table[-1] if c.sigma_max is None else c.sigma_max
            levels = schedule.karras_sigmas(float(smallest), float(largest), steps)
            timesteps = schedule.timesteps_at(levels, table)
            if c.beta_schedule != "squaredcos_cap_v2":
                timesteps = timesteps.round()
        else:
            if c.timestep_spacing == "trailing":
                timesteps = schedule.spaced_timesteps("trailing", steps, c.num_train_timesteps, c.steps_offset)
            else:  # one more than asked for, without the last: the clean end is no step
                timesteps = schedule.spaced_timesteps(c.timestep_spacing, steps + 1, c.num_train_timesteps, c.steps_offset)[:-1].round()
            levels = schedule.at_timesteps(timesteps, table)
        last = float(table[0]) if c.final_sigmas_type == "sigma_min" else 0.0
        self.sigmas = np.append(levels, last).astype(np.float32)
        self._x0_before: np.ndarray | None = None
        return timesteps.astype(np.int64)

    def _step(self, index: int, noise_pred: np.ndarray, latents: np.ndarray, noise: NoiseSource | None) -> np.ndarray:
        c = self.config
        alpha, sigma = self._level(index)
        alpha_next, sigma_next = self._level(index + 1)
        x0 = clean(c.prediction_type, noise_pred, latents, alpha**2)
        is_last = index == len(self.timesteps) - 1
        few = c.lower_order_final and len(self.timesteps) < FEW_STEPS
        direction = x0
        if self._x0_before is not None and not (is_last and (few or c.euler_at_final or c.final_sigmas_type == "zero")):
            h_before = self._lambda(index) - self._lambda(index - 1)
            h = self._lambda(index + 1) - self._lambda(index)
            direction = x0 + (0.5 * h / h_before) * (x0 - self._x0_before)
        self._x0_before = x0
        # exp(-h) = (sigma' / alpha') / (sigma / alpha): no logarithm, and finite where sigma' is zero
        return (sigma_next / sigma) * latents - (sigma_next * alpha / sigma - alpha_next) * direction

    def _level(self, index: int) -> tuple[float, float]:
        """(alpha, sigma) of a step in the variance-preserving form, alpha^2 + sigma^2 = 1."""
        level = float(self.sigmas[index])
        alpha = 1 / (level**2 + 1) ** 0.5
        return alpha, level * alpha

    def _lambda(self, index: int) -> float:
        """Half the logarithm of the signal-to-noise ratio."""
        return -math.log(float(self.sigmas[index]))

    def add_noise(self, latents: np.ndarray, noise: np.ndarray, t: float) -> np.ndarray:
        alpha, sigma = self._level(self.position(t))
        return alpha * latents + sigma * noise
