"""What the schedulers share: noise levels, where the steps are put among them, and sigma as a function of the timestep.

Notation: alphas_cumprod[t] is the product of (1 - beta) up to t (Ho et al. 2020, eq. 4), x_t = sqrt(alphas_cumprod[t]) x_0 +
sqrt(1 - alphas_cumprod[t]) noise, and sigma[t] = sqrt((1 - alphas_cumprod[t]) / alphas_cumprod[t]) is the same level of noise on
unscaled latents (Karras et al. 2022). Tables are float32, as in diffusers: timesteps found in them then come out equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

RHO = 7.0  # Karras et al. 2022, table 1
TERMINAL_ALPHA = np.float32(2**-24)  # stands in for zero where a schedule with zero terminal SNR needs a finite sigma


def betas(schedule: str, start: float, end: float, count: int, trained: Sequence[float] | None = None) -> np.ndarray:
    """Variance added at each training step, float32 [count]. `schedule`: linear, scaled_linear (linear in the square root; Rombach
    et al. 2022) or squaredcos_cap_v2 (Nichol & Dhariwal 2021, eq. 17, capped at 0.999). `trained` replaces them all."""
    if trained is not None:
        return np.asarray(trained, np.float32)
    if schedule == "linear":
        return _linspace(start, end, count)
    if schedule == "scaled_linear":
        return np.square(_linspace(start**0.5, end**0.5, count))
    if schedule == "squaredcos_cap_v2":
        level = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return np.asarray([min(1 - after / before, 0.999) for before, after in pairwise(level)], np.float32)
    raise ValueError(f"'{schedule}' is no schedule of betas")


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """Evenly spaced float32 [count], computed in float32 from both ends towards the middle as `torch.linspace` does."""
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(max(count - 1, 1))
    index = np.arange(count)
    # the product is exact in float64: one rounding, which is what a fused multiply-add does
    up = (np.float64(first) + np.float64(step) * index).astype(np.float32)
    down = (np.float64(last) - np.float64(step) * index[::-1]).astype(np.float32)
    return np.where(index < count // 2, up, down)


def alphas_cumprod(betas: np.ndarray, zero_terminal_snr: bool = False) -> np.ndarray:
    """Product of (1 - beta) up to every step, float32 [T]; rescaled to end at zero on request (Lin et al. 2024, algorithm 1)."""
    levels = _cumprod(np.float32(1) - betas)
    if not zero_terminal_snr:
        return levels
    root = np.sqrt(levels)
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    levels = np.square(root)
    # through the betas and back, like diffusers: the detour's rounding is part of its result
    alphas = np.concatenate([levels[:1], levels[1:] / levels[:-1]])
    return _cumprod(np.float32(1) - (np.float32(1) - alphas))


def _cumprod(factors: np.ndarray) -> np.ndarray:
    return np.cumprod(factors, dtype=np.float64).astype(np.float32)


def spaced_timesteps(spacing: str, steps: int, train_steps: int, offset: int) -> np.ndarray:
    """Timesteps from the noisiest to the cleanest, float64 (Lin et al. 2024, table 2): whole numbers but for linspace, which is exact.

    leading: multiples of train_steps // steps, plus `offset`; trailing: from train_steps - 1 down; linspace: both ends included.
    """
    if spacing == "leading":
        return np.arange(steps)[::-1] * float(train_steps // steps) + offset
    if spacing == "trailing":
        return np.round(np.arange(train_steps, 0, -train_steps / steps)) - 1
    if spacing == "linspace":
        return np.linspace(0, train_steps - 1, steps)[::-1]
    raise ValueError(f"'{spacing}' is no spacing of timesteps")


def sigmas(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Noise level on unscaled latents at every training step, float32 [T], rising."""
    return np.asarray(np.sqrt((np.float32(1) - alphas_cumprod) / alphas_cumprod))


def at_timesteps(timesteps: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Sigma at timesteps that may lie between the training steps: linear interpolation, float64."""
    return np.interp(timesteps, np.arange(len(sigmas)), sigmas)


def karras_sigmas(smallest: float, largest: float, steps: int) -> np.ndarray:
    """Karras et al. 2022, eq. 5: sigmas evenly spaced in sigma ** (1 / 7), from the largest to the smallest, float64 [steps]."""
    low, high = smallest ** (1 / RHO), largest ** (1 / RHO)
    return np.asarray((high + np.linspace(0, 1, steps) * (low - high)) ** RHO)


def timesteps_at(levels: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Timesteps that have the given noise levels, by linear interpolation in log(sigma): the inverse of sigma(t), float64."""
    table = np.log(sigmas)
    wanted = np.log(np.maximum(levels, 1e-10))
    below = np.clip(np.searchsorted(table, wanted, side="right") - 1, 0, len(table) - 2)
    low, high = table[below], table[below + 1]
    weight = np.clip((low - wanted) / (low - high), 0, 1)
    return np.asarray((1 - weight) * below + weight * (below + 1))
