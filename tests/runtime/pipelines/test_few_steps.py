"""SDXL-Turbo, SD-Turbo and LCM against diffusers' own pipelines on the same modules: 1 to 8 steps, from prompts and from pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_packages
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from runtime.compare import snr_db
from runtime.errors import InputError
from runtime.pipelines.image_to_image import image_to_image
from runtime.pipelines.settings import Settings
from runtime.pipelines.text_to_image import text_to_image

PROMPT = "a large red circle at the left on a white background"
SEED = 5
LATENTS_DB = 100.0  # the same modules on both sides; see test_sdxl.py
ONE = Settings.one_prompt(PROMPT, SEED)
PHOTO = (np.indices((64, 64)).sum(axis=0)[..., None] * [2, 1, 0.5]).astype(np.uint8)


def generator() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(SEED)]


def latents_of(kind: Any, parts: dict[str, Any], **call: Any) -> np.ndarray:
    """The final latents of diffusers' pipeline of that class."""
    xl = "text_encoder_2" in parts
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    made = kind(**parts, **({"add_watermarker": False} if xl else unchecked))
    made.set_progress_bar_config(disable=True)
    start = {"image": Image.fromarray(call.pop("photo"))} if "photo" in call else {"height": 64, "width": 64}
    return made(PROMPT, **start, **call, generator=generator(), output_type="latent").images.numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("few-steps")


@pytest.fixture(scope="module")
def xl(folder: Path) -> dict[str, Any]:
    """SDXL-Turbo's parts: SDXL's, with its own sampler."""
    parts = torch_packages.sdxl(folder)
    return {**parts, "scheduler": EulerAncestralDiscreteScheduler.from_config(torch_packages.SCHEDULER | {"timestep_spacing": "trailing"})}


@pytest.fixture(scope="module")
def sd(folder: Path, xl: dict[str, Any]) -> dict[str, Any]:
    """SD-Turbo's: one text encoder, Euler's method."""
    trailing = EulerDiscreteScheduler.from_config(torch_packages.SCHEDULER | {"timestep_spacing": "trailing"})
    return {**torch_packages.sd(xl), "scheduler": trailing}


@pytest.fixture(scope="module")
def lcm(xl: dict[str, Any]) -> dict[str, Any]:
    """LCM's: a U-Net that takes the guidance scale."""
    return {**torch_packages.sd(xl, time_cond_proj_dim=32), "scheduler": LCMScheduler.from_config(torch_packages.SCHEDULER)}


@pytest.fixture
def xl_turbo(folder: Path, xl: dict[str, Any]) -> torch_packages.TorchSessions:
    return torch_packages.sessions(folder, xl, steps=1, guidance=0.0, strength=0.5)


@pytest.fixture
def sd_turbo(folder: Path, sd: dict[str, Any]) -> torch_packages.TorchSessions:
    return torch_packages.sessions(folder, sd, steps=1, guidance=0.0, strength=0.5)


@pytest.fixture
def consistent(folder: Path, lcm: dict[str, Any]) -> torch_packages.TorchSessions:
    return torch_packages.sessions(folder, lcm, steps=4, guidance=8.5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_xl_turbo(steps: int, xl_turbo: torch_packages.TorchSessions, xl: dict[str, Any]) -> None:
    expected = latents_of(StableDiffusionXLPipeline, xl, num_inference_steps=steps, guidance_scale=0.0)
    result = text_to_image(xl_turbo, replace(ONE, steps=steps))
    assert snr_db(expected, result.latents) > LATENTS_DB
    assert xl_turbo.rows == [1] * steps  # one call per step, of one row: there is nothing to guide
    assert result.settings.scheduler == "euler_ancestral"


@pytest.mark.parametrize("steps", [1, 3])
def test_sd_turbo(steps: int, sd_turbo: torch_packages.TorchSessions, sd: dict[str, Any]) -> None:
    expected = latents_of(StableDiffusionPipeline, sd, num_inference_steps=steps, guidance_scale=0.0)
    result = text_to_image(sd_turbo, replace(ONE, steps=steps))
    assert snr_db(expected, result.latents) > LATENTS_DB
    assert sd_turbo.rows == [1] * steps


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (2, 0.5), (4, 0.5), (3, 0.9)])
def test_turbo_changes_a_picture(
    steps: int, strength: float, xl_turbo: torch_packages.TorchSessions, xl: dict[str, Any], sd_turbo: torch_packages.TorchSessions,
    sd: dict[str, Any],
) -> None:  # fmt: skip
    settings = replace(ONE, steps=steps, strength=strength, image=PHOTO)
    call = {"photo": PHOTO, "num_inference_steps": steps, "strength": strength, "guidance_scale": 0.0}
    for sessions, parts, kind in ((xl_turbo, xl, StableDiffusionXLImg2ImgPipeline), (sd_turbo, sd, StableDiffusionImg2ImgPipeline)):
        assert snr_db(latents_of(kind, parts, **call), image_to_image(sessions, settings).latents) > LATENTS_DB
        assert sessions.rows == [1] * math.floor(steps * strength)


@pytest.mark.parametrize(
    ("given", "steps", "strength"),
    [
        ({}, 2, 0.5),  # the package's one step would leave none at its strength of 0.5
        ({"steps": 1}, 1, 1.0),
        ({"steps": 4}, 4, 0.5),
        ({"strength": 0.3}, 4, 0.3),
        ({"strength": 0.7}, 2, 0.7),
        ({"strength": 1.0}, 1, 1.0),
    ],
)
def test_what_is_left_open_leaves_a_step(
    given: dict[str, Any], steps: int, strength: float, xl_turbo: torch_packages.TorchSessions
) -> None:
    result = image_to_image(xl_turbo, replace(ONE, image=PHOTO, **given))
    assert (result.settings.steps, result.settings.strength) == (steps, strength)
    assert len(xl_turbo.rows) == math.floor(steps * strength) >= 1


def test_no_step_is_a_sentence(xl_turbo: torch_packages.TorchSessions) -> None:
    with pytest.raises(InputError, match=r"a strength of 0.3 leaves no step of 3: take 4 steps or more, or more strength"):
        image_to_image(xl_turbo, replace(ONE, image=PHOTO, steps=3, strength=0.3))


@pytest.mark.parametrize(("steps", "guidance"), [(1, 8.5), (4, 8.5), (8, 1.0)])
def test_lcm(steps: int, guidance: float, consistent: torch_packages.TorchSessions, lcm: dict[str, Any]) -> None:
    expected = latents_of(LatentConsistencyModelPipeline, lcm, num_inference_steps=steps, guidance_scale=guidance)
    result = text_to_image(consistent, replace(ONE, steps=steps, guidance=guidance))
    assert snr_db(expected, result.latents) > LATENTS_DB
    assert consistent.rows == [1] * steps


def test_lcm_hears_its_guidance(consistent: torch_packages.TorchSessions) -> None:
    first, second = (text_to_image(consistent, replace(ONE, guidance=scale)).latents for scale in (2.0, 8.5))
    assert snr_db(first, second) < 60


@pytest.mark.parametrize(("steps", "strength"), [(1, 0.8), (4, 0.5), (8, 1.0), (1, 0.02)])
def test_lcm_changes_a_picture_in_all_its_steps(
    steps: int, strength: float, consistent: torch_packages.TorchSessions, lcm: dict[str, Any]
) -> None:
    expected = latents_of(
        LatentConsistencyModelImg2ImgPipeline, lcm, photo=PHOTO, num_inference_steps=steps, strength=strength, guidance_scale=8.5
    )
    result = image_to_image(consistent, replace(ONE, steps=steps, strength=strength, image=PHOTO))
    assert snr_db(expected, result.latents) > LATENTS_DB
    assert consistent.rows == [1] * steps


def test_lcm_has_the_steps_of_its_distillation(consistent: torch_packages.TorchSessions) -> None:
    with pytest.raises(InputError, match=r"a strength of 0.1 leaves 5 of the 50 steps that this model was distilled to, too few for 8"):
        image_to_image(consistent, replace(ONE, steps=8, strength=0.1, image=PHOTO))
    with pytest.raises(InputError, match="51 steps are not possible: this model was distilled to at most 50; 4 to 8 are usual"):
        image_to_image(consistent, replace(ONE, steps=51, image=PHOTO))
    with pytest.raises(InputError, match=r"the strength 1.5 is not above 0 and at most 1"):
        image_to_image(consistent, replace(ONE, strength=1.5, image=PHOTO))


def test_any_unet_samples_with_lcm_as_with_another(sd_turbo: torch_packages.TorchSessions, sd: dict[str, Any]) -> None:
    """As with the LoRA that makes a consistency model of any: steps above the strength are left out."""
    parts = {**sd, "scheduler": LCMScheduler.from_config(torch_packages.SCHEDULER)}
    call = {"num_inference_steps": 4, "strength": 0.5, "guidance_scale": 1.5}
    settings = replace(ONE, steps=4, strength=0.5, guidance=1.5, scheduler="lcm", image=PHOTO)
    result = image_to_image(sd_turbo, settings)
    assert snr_db(latents_of(StableDiffusionImg2ImgPipeline, parts, photo=PHOTO, **call), result.latents) > LATENTS_DB
    assert sd_turbo.rows == [2] * 2
