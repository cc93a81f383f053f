"""Image to image against diffusers' own pipeline on the same weights, with the same seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from runtime.compare import snr_db
from runtime.errors import InputError
from runtime.manifest import Package
from runtime.pipelines.image_to_image import image_to_image
from runtime.pipelines.settings import Settings
from runtime.scenes import draw, score_scenes

PROMPTS = ("a large red circle at the left on a white background", "a blue cross above a green square on a black background")
SEEDS = (3, 8)
LATENTS_DB = 80.0  # float32 on both sides; see test_text_to_image.py
NEAR = 2  # of 255


@pytest.fixture
def photo() -> np.ndarray:
    """A picture larger than the model's, and not square: uint8 [90, 120, 3]."""
    scene = (draw(score_scenes()[20], 120) * 255).astype(np.uint8)
    return scene[10:100]


@pytest.mark.parametrize(
    ("scheduler_class", "name", "strength"),
    [
        (PNDMScheduler, "pndm", 0.8),
        (PNDMScheduler, "pndm", 1.0),
        (EulerDiscreteScheduler, "euler", 0.5),
        (EulerAncestralDiscreteScheduler, "euler_ancestral", 0.7),
        (DPMSolverMultistepScheduler, "dpmpp_2m", 0.6),
    ],
)
def test_the_picture_is_diffusers(
    scheduler_class: Any, name: str, strength: float, photo: np.ndarray, tiny_package: Path, torch_pipeline: StableDiffusionPipeline
) -> None:
    pipeline = StableDiffusionImg2ImgPipeline(**torch_pipeline.components, requires_safety_checker=False)
    pipeline.scheduler = scheduler_class.from_config(torch_pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    resized = Image.fromarray(photo).resize((64, 64), Image.Resampling.LANCZOS)
    latents = pipeline(
        list(PROMPTS), image=resized, strength=strength, num_inference_steps=6, guidance_scale=4.0, output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
    ).images  # fmt: skip
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    expected = pipeline.image_processor.postprocess(decoded, output_type="np")

    settings = Settings(PROMPTS, SEEDS, steps=6, guidance=4.0, scheduler=name, image=photo, strength=strength, height=64, width=64)
    result = image_to_image(Package.open(tiny_package), settings)
    assert snr_db(latents.numpy(), result.latents) > LATENTS_DB
    assert np.abs(result.images.astype(int) - (expected * 255).round().astype(int)).max() <= NEAR
    assert len(result.timings["vae_encoder"]) == 1


def test_the_size_is_the_images(changed: Any) -> None:
    package = changed(lambda manifest: manifest["pipeline"].update(size_multiple=64))
    settings = Settings.one_prompt("x", steps=2, image=np.random.default_rng(0).integers(0, 255, (70, 100, 3), np.uint8))
    assert image_to_image(Package.open(package), settings).images.shape == (1, 64, 64, 3)


def test_what_is_missing_is_named(photo: np.ndarray, tiny_package: Path) -> None:
    package = Package.open(tiny_package)
    with pytest.raises(InputError, match="image to image needs an image"):
        image_to_image(package, Settings.one_prompt("x"))
    with pytest.raises(InputError, match=r"a strength of 0.1 leaves no step of 5: take 10 steps or more, or more strength"):
        image_to_image(package, Settings.one_prompt("x", image=photo, steps=5, strength=0.1, height=64, width=64))
    with pytest.raises(InputError, match=r"the strength 1.5 is not above 0 and at most 1"):
        image_to_image(package, Settings.one_prompt("x", image=photo, strength=1.5, height=64, width=64))
