"""The interface of every scheduler, and the configuration that they all read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from runtime.errors import InputError
from runtime.schedulers import schedule

NoiseSource = Callable[[tuple[int, ...]], np.ndarray]  # shape -> standard normal float32: `Noise.normal`

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Config:
    """The keys of diffusers' scheduler_config.json that all schedulers share, with diffusers' names and defaults."""

    # key -> the values with which the scheduler does what diffusers' does; anything else is refused and never ignored
    accepted: ClassVar[dict[str, tuple[Any, ...]]] = {
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
        "prediction_type": PREDICTIONS,
        "timestep_spacing": ("leading", "trailing", "linspace"),
    }

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], owner: str) -> Self:
        """Takes the keys it knows, of whatever scheduler's configuration `raw` is, like diffusers' `from_config`.

        A key that is absent has this class's default, as has one that `_use_default_values` lists. `owner` is named in the errors.
        Errors: InputError for a value that the scheduler does not support.
        """
        defaulted = raw.get("_use_default_values") or ()
        given = {key: value for key, value in raw.items() if key not in defaulted}
        for key, values in cls.accepted.items():
            if key in given and given[key] not in values:
                listed = " or ".join(repr(value) for value in values)
                raise InputError(f"{owner} with {key} = {given[key]!r} is not supported: it has to be {listed}")
        names = {field.name for field in fields(cls)}
        known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if key in names}
        return cls(**known)


class Scheduler(ABC):
    """A sampler: from noise to latents along the timesteps. Latents are float32 of any shape and all schedulers work elementwise.

    Usage: `set_timesteps`, then for each t of `timesteps`: `scale_model_input`, the model, `step`.
    Scalar coefficients are float64 from the float32 tables; arrays stay float32.
    """

    name: ClassVar[str]  # on our command line
    class_name: ClassVar[str]  # in diffusers
    config_class: ClassVar[type[Config]] = Config

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` is diffusers' scheduler_config.json, of this scheduler or of another one. Errors: InputError."""
        self.config = self.config_class.from_dict(config, self.class_name)
        c = self.config
        betas = schedule.betas(c.beta_schedule, c.beta_start, c.beta_end, c.num_train_timesteps, c.trained_betas)
        self.alphas_cumprod = schedule.alphas_cumprod(betas, c.rescale_betas_zero_snr)
        self.steps = 0
        self.timesteps: np.ndarray = np.empty(0, np.int64)
        self.index = 0  # of the next step, in `timesteps`

    def set_timesteps(self, steps: int) -> None:
        """Plans `steps` steps and forgets a trajectory that was under way. Errors: InputError for an impossible number."""
        longest = self.config.num_train_timesteps
        if not 1 <= steps <= longest:
            raise InputError(f"{steps} steps are not possible: {self.class_name} makes 1 to {longest} of them")
        self.steps = steps
        self.index = 0
        self.timesteps = self._plan(steps)

    @abstractmethod
    def _plan(self, steps: int) -> np.ndarray:
        """The timesteps in the order of the steps; fills the scheduler's own tables."""

    def timesteps_from(self, strength: float) -> np.ndarray:
        """The timesteps that are left when an image is noised by `strength`, above 0 up to 1 (SDEdit; Meng et al. 2022).

        `add_noise` at the first of them makes the latents to start from, and the next `step` is the one at it. Call it after
        `set_timesteps`. Errors: InputError where no step is left.
        """
        if not 0 < strength <= 1:
            raise InputError(f"the strength {strength:g} is not above 0 and at most 1")
        kept = min(int(self.steps * strength), self.steps)
        if kept == 0:
            enough = math.ceil(1 / strength)
            raise InputError(f"a strength of {strength:g} leaves no step of {self.steps}: take {enough} steps or more, or more strength")
        return self.start_at(self.steps - kept)

    def start_at(self, index: int) -> np.ndarray:
        """The timesteps from `timesteps[index]` on, at which the next `step` then is. Call it after `set_timesteps`."""
        self.index = index
        return self.timesteps[index:]

    def steps_before(self, share: float) -> int:
        """How many of `timesteps` lie in the first, noisiest `share` of the training's timesteps: those that a base model makes where a
        refiner makes the others (Podell et al. 2023, section 2.5). Errors: InputError for a share that is not between 0 and 1."""
        if not 0 < share < 1:
            raise InputError(f"a hand-over at {share:g} is not possible: give a share of the noise between 0 and 1, such as 0.8")
        last = round(self.config.num_train_timesteps - share * self.config.num_train_timesteps)
        return int((self.timesteps >= last).sum())

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the latents to start from: multiply standard normal noise by it. Call it after `set_timesteps`."""
        return 1.0

    def scale_model_input(self, latents: np.ndarray, t: float) -> np.ndarray:
        """The latents as the model expects them at timestep t."""
        return latents

    def step(self, noise_pred: np.ndarray, t: float, latents: np.ndarray, noise: NoiseSource | None = None) -> np.ndarray:
        """Latents of the next timestep, float32, from the model's output at t (after guidance). Stochastic schedulers draw from `noise`."""
        index = self.position(t)
        latents = self._step(index, np.asarray(noise_pred, np.float32), np.asarray(latents, np.float32), noise)
        self.index = index + 1
        return latents

    @abstractmethod
    def _step(self, index: int, noise_pred: np.ndarray, latents: np.ndarray, noise: NoiseSource | None) -> np.ndarray:
        """The step from `timesteps[index]`, on float32 arrays."""

    def add_noise(self, latents: np.ndarray, noise: np.ndarray, t: float) -> np.ndarray:
        """Clean latents noised to the level of timestep t (Ho et al. 2020, eq. 4). `noise` is standard normal of the latents' shape."""
        alpha = float(self.alphas_cumprod[int(t)])
        return alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise

    def position(self, t: float) -> int:
        """Index of timestep t in `timesteps`: that of the next step where it is t, else the first that is. (A timestep may occur
        twice where rounding joins two noise levels.) Errors: ValueError for a timestep that is not in the plan."""
        if self.index < len(self.timesteps) and self.timesteps[self.index] == t:
            return self.index
        found = np.flatnonzero(self.timesteps == t)
        if not len(found):
            raise ValueError(f"timestep {t} is not one of this plan: {self.timesteps.tolist()}")
        return int(found[0])


def alpha_at(alphas_cumprod: np.ndarray, t: int, set_alpha_to_one: bool) -> float:
    """alphas_cumprod[t], continued to the time before the first training step: 1, or that of the first."""
    if t >= 0:
        return float(alphas_cumprod[t])
    return 1.0 if set_alpha_to_one else float(alphas_cumprod[0])


def drawn(noise: NoiseSource | None, latents: np.ndarray, scheduler: Scheduler) -> np.ndarray:
    """Fresh noise for a stochastic step. Errors: ValueError where the caller gave no source."""
    if noise is None:
        raise ValueError(f"{scheduler.class_name} draws noise at its steps: give step() a source, such as Noise(seed).normal")
    return noise(latents.shape)


def clean(prediction_type: str, output: np.ndarray, latents: np.ndarray, alpha: float) -> np.ndarray:
    """x_0 from the model's output on latents of level alpha = alphas_cumprod[t]: DDIM eq. 12 (Song et al. 2021) for epsilon,
    Salimans & Ho 2022, appendix D, for v."""
    if prediction_type == "epsilon":
        if alpha == 0:
            raise InputError("nothing is left of the picture at the first step (rescale_betas_zero_snr), so that epsilon cannot tell it: "
                             "the model needs v_prediction")
        return (latents - (1 - alpha) ** 0.5 * output) / alpha**0.5
    if prediction_type == "v_prediction":
        return alpha**0.5 * latents - (1 - alpha) ** 0.5 * output
    return output
