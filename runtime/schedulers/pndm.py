"""x' = sqrt(a' / a) x - (a' - a) eps / (a sqrt(1 - a') + sqrt(a (1 - a) a')), eps from the last four outputs of the model"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from runtime.errors import InputError
from runtime.schedulers.base import Config, NoiseSource, Scheduler, alpha_at
from runtime.schedulers.schedule import spaced_timesteps

ORDER = 4


@dataclass(frozen=True)
class PndmConfig(Config):
    accepted: ClassVar = {**Config.accepted, "prediction_type": ("epsilon", "v_prediction"), "rescale_betas_zero_snr": (False, None)}

    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False


class Pndm(Scheduler):
    """Pseudo numerical methods: Liu et al. 2022 (arXiv 2202.09778), eq. 11 (transfer), 12 (linear multistep), 13 (Runge-Kutta).

    With skip_prk_steps (PLMS, as Stable Diffusion has it) the multistep method starts by itself: the second timestep is evaluated
    twice, so that n steps take n + 1 evaluations. Otherwise three steps of Runge-Kutta, with 4 evaluations each, come first.
    """

    name = "pndm"
    class_name = "PNDMScheduler"
    config_class = PndmConfig
    config: PndmConfig

    def _plan(self, steps: int) -> np.ndarray:
        c = self.config
        timesteps = spaced_timesteps(c.timestep_spacing, steps, c.num_train_timesteps, c.steps_offset).round().astype(np.int64)
        self._stride = c.num_train_timesteps // steps
        self._outputs: list[np.ndarray] = []
        self._done = 0
        self._origin: np.ndarray | None = None  # latents from which the evaluations of one step start
        self._sum: np.ndarray | float = 0.0  # of the Runge-Kutta evaluations of one step, weighted
        self._runge_kutta = np.empty(0, np.int64)
        if c.skip_prk_steps:
            return np.concatenate([timesteps[:2], timesteps[1:2], timesteps[2:]])
        if steps < ORDER:
            raise InputError(f"{steps} steps are not possible: {self.class_name} with skip_prk_steps = False makes at least {ORDER}")
        halves = np.stack([timesteps[:ORDER] + self._stride // 2, timesteps[:ORDER]], axis=1).reshape(-1)
        self._runge_kutta = halves[1:].repeat(2)[1:-1]
        return np.concatenate([self._runge_kutta, timesteps[ORDER - 1 :]])

    def _step(self, index: int, noise_pred: np.ndarray, latents: np.ndarray, noise: NoiseSource | None) -> np.ndarray:
        t = int(self.timesteps[index])
        method = self._runge_kutta_step if self._done < len(self._runge_kutta) else self._multistep
        latents = method(t, noise_pred, latents)
        self._done += 1
        return latents

    def _runge_kutta_step(self, t: int, output: np.ndarray, latents: np.ndarray) -> np.ndarray:
        """One of the four evaluations of a step (Liu et al. 2022, eq. 13)."""
        evaluation = self._done % 4
        if evaluation == 0:
            self._outputs.append(output)
            self._origin = latents
        if evaluation == 3:
            output = self._sum + 1 / 6 * output
            self._sum = 0.0
        else:
            self._sum = self._sum + (1 / 6, 1 / 3, 1 / 3)[evaluation] * output
        before = t if self._done % 2 else t - self._stride // 2
        assert self._origin is not None  # the first evaluation set it
        return self._transfer(self._origin, int(self._runge_kutta[self._done // 4 * 4]), before, output)

    def _multistep(self, t: int, output: np.ndarray, latents: np.ndarray) -> np.ndarray:
        """A step from the last outputs (Liu et al. 2022, eq. 12), of lower order while there are fewer than four."""
        before = t - self._stride
        if self._done == 1:  # the second evaluation improves the first step, from the latents it started from
            assert self._origin is not None
            latents, self._origin = self._origin, None
            return self._transfer(latents, t + self._stride, t, (output + self._outputs[-1]) / 2)
        if self._done == 0:
            self._origin = latents
        self._outputs = [*self._outputs[-3:], output]
        e = self._outputs[::-1]
        if len(e) == 2:
            output = (3 * e[0] - e[1]) / 2
        elif len(e) == 3:
            output = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
        elif len(e) == 4:
            output = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        return self._transfer(latents, t, before, output)

    def _transfer(self, latents: np.ndarray, t: int, before: int, output: np.ndarray) -> np.ndarray:
        """From timestep t to an earlier one along the model's output (Liu et al. 2022, eq. 11)."""
        alpha = alpha_at(self.alphas_cumprod, t, self.config.set_alpha_to_one)
        alpha_before = alpha_at(self.alphas_cumprod, before, self.config.set_alpha_to_one)
        if self.config.prediction_type == "v_prediction":
            output = alpha**0.5 * output + (1 - alpha) ** 0.5 * latents
        scale = (alpha_before - alpha) / (alpha * (1 - alpha_before) ** 0.5 + (alpha * (1 - alpha) * alpha_before) ** 0.5)
        return (alpha_before / alpha) ** 0.5 * latents - scale * output
