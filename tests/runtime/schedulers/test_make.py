"""Which scheduler a configuration or a name gives, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime import schedulers
from runtime.errors import InputError

PNDM: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}


def test_table() -> None:
    assert [(each.name, each.class_name) for each in schedulers.SCHEDULERS] == [
        ("ddim", "DDIMScheduler"),
        ("pndm", "PNDMScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler"),
        ("dpmpp_2m", "DPMSolverMultistepScheduler"),
        ("lcm", "LCMScheduler"),
    ]


@pytest.mark.parametrize("scheduler", schedulers.SCHEDULERS, ids=lambda each: each.name)
def test_a_name_keeps_the_shared_keys(scheduler: type[schedulers.Scheduler]) -> None:
    assert type(schedulers.make({"_class_name": scheduler.class_name})) is scheduler
    named = schedulers.make(PNDM, scheduler.name)
    assert type(named) is scheduler
    assert (named.config.beta_end, named.config.steps_offset, named.config.prediction_type) == (0.012, 1, "v_prediction")
    assert named.config.timestep_spacing == scheduler.config_class().timestep_spacing


def test_a_key_that_was_a_default_of_the_other_class_is_not_kept() -> None:
    config = PNDM | {"timestep_spacing": "leading"}
    assert schedulers.make(config, "euler").config.timestep_spacing == "leading"
    assert schedulers.make(config | {"_use_default_values": ["timestep_spacing"]}, "euler").config.timestep_spacing == "linspace"


@pytest.mark.parametrize(
    ("config", "name", "sentence"),
    [
        (
            PNDM,
            "eulr",
            r"there is no scheduler 'eulr' \(the nearest is 'euler'\): there are ddim, pndm, euler, euler_ancestral, dpmpp_2m, lcm",
        ),
        (PNDM, "zzz", r"there is no scheduler 'zzz': there are ddim, "),
        (
            {"_class_name": "DPMSolverSinglestepScheduler"},
            None,
            r"the scheduler class 'DPMSolverSinglestepScheduler' is not supported \(the nearest is 'DPMSolverMultistepScheduler'\): "
            r"choose one by name, ddim, pndm, ",
        ),
        ({}, None, r"the scheduler class 'None' is not supported: choose one by name"),
        ({"thresholding": True}, "ddim", r"DDIMScheduler with thresholding = True is not supported: it has to be False or None"),
        ({"thresholding": True}, "lcm", r"LCMScheduler with thresholding = True is not supported"),
        ({"prediction_type": "sample"}, "pndm", r"PNDMScheduler with prediction_type = 'sample' .* has to be 'epsilon' or 'v_prediction'"),
        ({"prediction_type": "flow_prediction"}, "dpmpp_2m", r"prediction_type = 'flow_prediction' is not supported"),
        ({"rescale_betas_zero_snr": True}, "pndm", r"PNDMScheduler with rescale_betas_zero_snr = True is not supported"),
        ({"interpolation_type": "log_linear"}, "euler", r"interpolation_type = 'log_linear' is not supported: it has to be 'linear'"),
        ({"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m", r"algorithm_type = 'sde-dpmsolver\+\+' is not supported"),
        ({"solver_order": 3}, "dpmpp_2m", r"solver_order = 3 is not supported: it has to be 2"),
        ({"use_lu_lambdas": True}, "dpmpp_2m", r"use_lu_lambdas = True is not supported"),
        ({"beta_schedule": "sigmoid"}, "ddim", r"beta_schedule = 'sigmoid' is not supported"),
    ],
)
def test_refused_configurations(config: dict[str, Any], name: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        schedulers.make(config, name)


def test_refused_steps() -> None:
    for name, steps, sentence in [
        ("ddim", 0, "0 steps are not possible: DDIMScheduler makes 1 to 1000 of them"),
        ("euler", 1001, "1001 steps are not possible: EulerDiscreteScheduler makes 1 to 1000 of them"),
        ("lcm", 51, "51 steps are not possible: this model was distilled to at most 50; 4 to 8 are usual"),
    ]:
        with pytest.raises(InputError, match=sentence):
            schedulers.make(PNDM, name).set_timesteps(steps)
    with pytest.raises(InputError, match="3 steps are not possible: PNDMScheduler with skip_prk_steps = False makes at least 4"):
        schedulers.make(PNDM | {"skip_prk_steps": False}).set_timesteps(3)


def test_refused_strengths() -> None:
    scheduler = schedulers.make(PNDM, "euler")
    scheduler.set_timesteps(20)
    for strength in (0.0, -0.5, 1.5):
        with pytest.raises(InputError, match=f"the strength {strength:g} is not above 0 and at most 1"):
            scheduler.timesteps_from(strength)
    with pytest.raises(InputError, match=r"a strength of 0.04 leaves no step of 20: take 25 steps or more, or more strength"):
        scheduler.timesteps_from(0.04)


def test_misuse() -> None:
    latents = np.zeros((1, 4, 2, 2), np.float32)
    scheduler = schedulers.make(PNDM, "euler_ancestral")
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="EulerAncestralDiscreteScheduler draws noise at its steps: give step"):
        scheduler.step(latents, scheduler.timesteps[0], latents)
    with pytest.raises(ValueError, match="timestep 1000 is not one of this plan: "):
        scheduler.step(latents, 1000, latents)


def test_epsilon_cannot_start_from_pure_noise() -> None:
    latents = np.zeros((1, 4, 2, 2), np.float32)
    config = PNDM | {"rescale_betas_zero_snr": True, "prediction_type": "epsilon", "timestep_spacing": "trailing"}
    scheduler = schedulers.make(config, "ddim")
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match=r"nothing is left of the picture at the first step .* the model needs v_prediction"):
        scheduler.step(latents, 999, latents)


def test_a_second_plan_forgets_the_first() -> None:
    """Multistep methods keep outputs of the model: a new trajectory must not see them."""
    rng = np.random.default_rng(0)
    start, outputs = rng.standard_normal((1, 4, 2, 2), np.float32), rng.standard_normal((8, 1, 4, 2, 2), np.float32)

    def trajectory(scheduler: schedulers.Scheduler) -> np.ndarray:
        scheduler.set_timesteps(6)
        latents = start
        for t, output in zip(scheduler.timesteps, outputs, strict=False):
            latents = scheduler.step(output, t, latents)
        return latents

    for name in ("pndm", "dpmpp_2m", "euler", "ddim"):
        scheduler = schedulers.make(PNDM, name)
        np.testing.assert_array_equal(trajectory(scheduler), trajectory(scheduler))


def test_half_precision_outputs_are_stepped_in_float32() -> None:
    scheduler = schedulers.make(PNDM, "ddim")
    scheduler.set_timesteps(4)
    output = np.full((1, 4, 2, 2), 0.1, np.float16)
    latents = np.ones((1, 4, 2, 2), np.float32)
    expected = scheduler.step(output.astype(np.float32), scheduler.timesteps[0], latents)
    scheduler.set_timesteps(4)
    stepped = scheduler.step(output, scheduler.timesteps[0], latents)
    assert stepped.dtype == np.float32
    np.testing.assert_array_equal(stepped, expected)
