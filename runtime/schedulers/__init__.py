"""Samplers in numpy, each equal to diffusers' step by step. Interface: `runtime.schedulers.base.Scheduler`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from runtime.errors import InputError
from runtime.schedulers.base import NoiseSource, Scheduler
from runtime.schedulers.ddim import Ddim
from runtime.schedulers.dpmpp_2m import DpmSolverPlusPlus2M
from runtime.schedulers.euler import Euler
from runtime.schedulers.euler_ancestral import EulerAncestral
from runtime.schedulers.lcm import Lcm
from runtime.schedulers.pndm import Pndm

__all__ = ["SCHEDULERS", "NoiseSource", "Scheduler", "make"]

SCHEDULERS: tuple[type[Scheduler], ...] = (Ddim, Pndm, Euler, EulerAncestral, DpmSolverPlusPlus2M, Lcm)


def make(config: Mapping[str, Any], name: str | None = None) -> Scheduler:
    """The scheduler of a diffusers scheduler_config.json, or the one called `name` with what that configuration shares with it.

    Names: ddim, pndm, euler, euler_ancestral, dpmpp_2m, lcm. Errors: InputError for an unknown one, or for a configuration that the
    scheduler does not support.
    """
    if name is not None:
        by_name = {scheduler.name: scheduler for scheduler in SCHEDULERS}
        if name not in by_name:
            raise InputError(f"there is no scheduler '{name}'{_nearest(name, list(by_name))}: there are {', '.join(by_name)}")
        return by_name[name](config)
    by_class = {scheduler.class_name: scheduler for scheduler in SCHEDULERS}
    wanted = config.get("_class_name")
    if wanted not in by_class:
        raise InputError(
            f"the scheduler class '{wanted}' is not supported{_nearest(str(wanted), list(by_class))}: "
            f"choose one by name, {', '.join(scheduler.name for scheduler in SCHEDULERS)}"
        )
    return by_class[wanted](config)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (the nearest is '{near[0]}')" if near else ""
