"""Every scheduler against diffusers' of the same name and configuration, live.

A toy model stands in for the U-Net: its output, computed once from diffusers' latents, is given to both. Two of ours run beside
diffusers'. One takes each step from diffusers' latents: it shows the error of a single step. The other one carries its own latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from runtime import schedulers
from runtime.noise import Noise
from runtime.schedulers import Scheduler

# A step is some ten operations in float32, in diffusers on coefficients in float32 too: ten roundings of half a unit in the last place
# of its largest intermediate value, 10 * 2**-24 = 6e-7. Stochastic ones add torch's noise, 5e-7 from ours (test_noise.py).
STEP = 1.2e-6
# The share of the picture in the latents grows from sqrt(alphas_cumprod[999]) = 0.07 to 1 over a trajectory, and an early error with it:
# by at most 15. The errors of n steps are independent and add up like a random walk.
GROWTH = 15.0

STABLE_DIFFUSION: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
SHAPE = (2, 4, 4, 4)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
STEPS = (1, 2, 4, 20, 50)
CASES = [
    (name, {"prediction_type": prediction, "timestep_spacing": spacing, "use_karras_sigmas": karras})
    for name in ("ddim", "pndm", "euler", "euler_ancestral", "dpmpp_2m", "lcm")
    for prediction in PREDICTIONS
    for spacing in SPACINGS
    for karras in ((False, True) if name in ("euler", "dpmpp_2m") else (False,))
    if prediction != "sample" or name not in ("pndm", "euler_ancestral")  # diffusers has no such thing
]


def described(case: object) -> str:
    return "-".join(str(value) for value in case.values()) if isinstance(case, dict) else str(case)


def theirs_of(ours: Scheduler, config: Mapping[str, Any]) -> Any:
    # the pipelines of diffusers turn clip_sample off; its default is for pixels
    return getattr(diffusers, ours.class_name).from_config({"clip_sample": False, **config})


def toy_model(latents: np.ndarray, t: float) -> np.ndarray:
    weight = np.linspace(0.2, 1.0, latents.size, dtype=np.float32).reshape(latents.shape)
    return np.tanh(latents * weight + np.float32(t / 1000))


def largest(*arrays: np.ndarray) -> float:
    return max(float(np.abs(array).max()) for array in arrays)


def gain(ours: Scheduler, index: int) -> float:
    """How much larger than the latents the terms are that a step subtracts, where it divides by the share of the picture in them.
    (PNDM repeats the step before.)"""
    if "euler" in ours.name or not (ours.config.prediction_type == "epsilon" or ours.name == "pndm"):
        return 1.0
    shares = [*ours.alphas_cumprod[ours.timesteps[max(index - 1, 0) :]], 1.0][:3]
    return float(max(shares) / min(shares)) ** 0.5


def compare(name: str, config: dict[str, Any], steps: int, strength: float | None = None, step_tolerance: float = STEP) -> None:
    """Runs diffusers' scheduler and ours from the same seed, in the loop of text to image or (with a strength) of image to image."""
    carrying, stepping = schedulers.make(config, name), schedulers.make(config, name)
    theirs = theirs_of(carrying, config)
    for scheduler in (theirs, carrying, stepping):
        scheduler.set_timesteps(steps)
    assert carrying.timesteps.dtype == theirs.timesteps.numpy().dtype
    if config.get("use_karras_sigmas") and name == "euler":
        # found in logarithms of square roots, which torch rounds differently from processor to processor
        np.testing.assert_allclose(carrying.timesteps, theirs.timesteps.numpy(), rtol=1e-6)
    else:
        np.testing.assert_array_equal(carrying.timesteps, theirs.timesteps.numpy())
    np.testing.assert_allclose(carrying.init_noise_sigma, float(theirs.init_noise_sigma), rtol=3e-7)

    noise = np.random.default_rng(steps).standard_normal(SHAPE, np.float32)
    if strength is None:
        timesteps, our_timesteps = theirs.timesteps, carrying.timesteps
        latents = noise * np.float32(theirs.init_noise_sigma)
        their_latents = torch.from_numpy(latents)
    else:
        image = np.random.default_rng(steps + 1).standard_normal(SHAPE, np.float32)
        begin = max(steps - min(int(steps * strength), steps), 0)  # diffusers' get_timesteps
        timesteps = theirs.timesteps[begin * theirs.order :]
        if hasattr(theirs, "set_begin_index"):
            theirs.set_begin_index(begin * theirs.order)
        our_timesteps = carrying.timesteps_from(strength)
        np.testing.assert_array_equal(stepping.timesteps_from(strength), our_timesteps)
        assert len(our_timesteps) == len(timesteps)
        their_latents = theirs.add_noise(torch.from_numpy(image), torch.from_numpy(noise), timesteps[:1])
        latents = carrying.add_noise(image, noise, our_timesteps[0])
        np.testing.assert_allclose(latents, their_latents.numpy(), rtol=0, atol=STEP * largest(latents))

    generator, noises = torch.Generator("cpu").manual_seed(steps), (Noise(steps), Noise(steps))
    options: dict[str, Any] = {}
    if name in ("euler_ancestral", "lcm") or config.get("eta"):
        options["generator"] = generator
    if config.get("eta"):
        options["eta"] = config["eta"]
    for t, our_t in zip(timesteps, our_timesteps, strict=True):
        before, index = their_latents.numpy(), stepping.index
        model_input = theirs.scale_model_input(their_latents, t).numpy()
        np.testing.assert_allclose(stepping.scale_model_input(before, our_t), model_input, rtol=STEP, atol=0)
        output = toy_model(model_input, float(t))
        their_latents = theirs.step(torch.from_numpy(output), t, their_latents, **options).prev_sample
        ours = stepping.step(output, our_t, before, noises[0].normal)
        assert ours.dtype == np.float32
        after = their_latents.numpy()
        scale = gain(stepping, index) * largest(before, after, output)
        np.testing.assert_allclose(ours, after, rtol=0, atol=step_tolerance * scale)
        latents = carrying.step(output, our_t, latents, noises[1].normal)
    np.testing.assert_allclose(latents, after, rtol=0, atol=step_tolerance * GROWTH * len(timesteps) ** 0.5 * largest(after))


@pytest.mark.parametrize(("name", "case"), CASES, ids=described)
def test_text_to_image(name: str, case: dict[str, Any]) -> None:
    for steps in STEPS:
        compare(name, STABLE_DIFFUSION | case, steps)


@pytest.mark.parametrize(("name", "case"), CASES, ids=described)
def test_image_to_image(name: str, case: dict[str, Any]) -> None:
    for steps, strength in [(2, 0.5), (4, 1.0), (20, 0.3), (20, 0.8), (50, 0.75)]:
        compare(name, STABLE_DIFFUSION | case, steps, strength)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {"eta": 0.5}),
    ("ddim", {"eta": 1.0, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("ddim", {"set_alpha_to_one": True}),
    ("ddim", {"clip_sample": True, "clip_sample_range": 2.0}),
    ("ddim", {"beta_schedule": "squaredcos_cap_v2"}),
    ("ddim", {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}),
    ("ddim", {"trained_betas": np.linspace(0.001, 0.015, 1000).tolist()}),
    ("ddim", {"num_train_timesteps": 500}),
    ("pndm", {"set_alpha_to_one": True}),
    ("pndm", {"skip_prk_steps": False}),
    ("pndm", {"skip_prk_steps": False, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("pndm", {"steps_offset": 0}),
    ("euler", {"final_sigmas_type": "sigma_min"}),
    ("euler", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
    ("dpmpp_2m", {"final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False, "euler_at_final": True}),
    ("dpmpp_2m", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
    ("dpmpp_2m", {"solver_type": "bh2"}),
    ("lcm", {"original_inference_steps": 100, "timestep_scaling": 5.0}),
    ("lcm", {"clip_sample": True, "clip_sample_range": 2.0, "set_alpha_to_one": True}),
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=described)
def test_other_keys(name: str, variant: dict[str, Any]) -> None:
    for steps, strength in itertools.product((4, 20), (None, 0.6)):
        if variant.get("skip_prk_steps", True) or strength is None:
            compare(name, STABLE_DIFFUSION | variant, steps, strength)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "lcm"])
def test_zero_terminal_snr(name: str, spacing: str) -> None:
    """Lin et al. 2024. Square roots are subtracted from one another, which torch rounds differently from processor to processor: where
    little of the picture is left, at the start of linspace, the levels of noise differ by 5e-6, and so do the steps."""
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": spacing}
    for steps in (1, 4, 20):
        compare(name, STABLE_DIFFUSION | config, steps, step_tolerance=1e-5)


def test_a_configuration_without_keys_has_the_defaults_of_diffusers() -> None:
    """But for clip_sample: see DdimConfig."""
    for name in ("ddim", "pndm", "euler", "euler_ancestral", "dpmpp_2m", "lcm"):
        compare(name, {}, 10)


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m", "lcm", "pndm", "ddim"])
def test_every_whole_number_of_steps_has_the_timesteps_of_diffusers(name: str) -> None:
    for spacing in SPACINGS:
        config = STABLE_DIFFUSION | {"timestep_spacing": spacing}
        ours = schedulers.make(config, name)
        theirs = theirs_of(ours, config)
        for steps in range(1, 51 if name == "lcm" else 100):
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
            np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())


def test_equal_first_timesteps() -> None:
    """Karras sigmas of a cosine schedule start where a training step is a wide jump: two of them have the same timestep. diffusers
    would begin at the second one, were it not told where to (a strength does that); we begin at the first."""
    config = STABLE_DIFFUSION | {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}
    ours = schedulers.make(config, "dpmpp_2m")
    ours.set_timesteps(20)
    assert ours.timesteps[0] == ours.timesteps[1]
    compare("dpmpp_2m", config, 20, strength=1.0)


def test_stable_video_diffusion() -> None:
    """Karras sigmas from 0.002 to 700 and a continuous timestep, log(sigma) / 4."""
    config = STABLE_DIFFUSION | {"prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True}
    config |= {"sigma_min": 0.002, "sigma_max": 700.0, "timestep_spacing": "leading"}
    for steps in (1, 25):
        compare("euler", config, steps)
