"""Which steps are made: of how many, from which on where an image is changed, and up to which where a refiner goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.schedulers.base import Scheduler
from runtime.schedulers.lcm import Lcm
from runtime.session import Sessions


def below_strength(scheduler: Scheduler, sessions: Sessions) -> bool:
    """Whether all steps are put below an image's strength, as diffusers' pipeline of latent consistency models has it. All others leave out
    the steps above it (Meng et al. 2022), which leaves few steps none."""
    return isinstance(scheduler, Lcm) and "timestep_cond" in sessions.inputs("unet")


def steps_and_strength(
    steps: int | None, strength: float | None, pipeline: Mapping[str, Any], task_strength: float, all_below: bool
) -> tuple[int, float]:
    """The numbers that a user left open. Where the package's would leave an image no step, as those of a model of one step do, they
    give way until one is left. `task_strength` is the default."""
    wanted = pipeline["steps"] if steps is None else steps
    share = task_strength if strength is None else strength
    if not all_below and wanted > 0 and share > 0:
        if steps is None:
            wanted = max(wanted, math.ceil(1 / share))
        elif strength is None:
            share = max(share, 1 / wanted)
    return wanted, share


def plan(scheduler: Scheduler, steps: int, strength: float, all_below: bool) -> np.ndarray:
    """The timesteps of the steps to make. Errors: InputError for impossible numbers, and where no step is left."""
    if all_below:
        assert isinstance(scheduler, Lcm)
        scheduler.set_timesteps(steps, strength)
        return scheduler.timesteps
    scheduler.set_timesteps(steps)
    return scheduler.timesteps_from(strength)


def before_handover(scheduler: Scheduler, timesteps: np.ndarray, handover: float) -> np.ndarray:
    """Those of the base, of its planned `timesteps`: from the noisiest up to the share `handover` of the training's timesteps, which
    is diffusers' `denoising_end`. Errors: InputError where there is none."""
    kept = timesteps[: max(scheduler.steps_before(handover) - scheduler.index, 0)]
    if not len(kept):
        raise InputError(f"a hand-over at {handover:g} leaves the base no step of {scheduler.steps}: hand over later, or make more")
    return kept


def after_handover(scheduler: Scheduler, handover: float) -> np.ndarray:
    """Those of the refiner: the others, which is diffusers' `denoising_start`. Errors: InputError where there is none."""
    begin = scheduler.steps_before(handover)
    if begin == len(scheduler.timesteps):
        raise InputError(
            f"a hand-over at {handover:g} leaves the refiner no step of {scheduler.steps}: hand over earlier, or make more"
        )
    return scheduler.start_at(begin)
