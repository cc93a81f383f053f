"""Inpainting with 4 and 9 channels against diffusers' own pipeline on the same weights, with the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image

from runtime.compare import snr_db
from runtime.errors import InputError
from runtime.manifest import Package
from runtime.pipelines.inpaint import inpaint
from runtime.pipelines.settings import Settings
from runtime.scenes import draw, score_scenes

PROMPT = "a large red circle at the left on a white background"
SEED = 4
LATENTS_DB = 80.0  # float32 on both sides; see test_text_to_image.py
NEAR = 2  # of 255


@pytest.fixture
def image() -> np.ndarray:
    return (draw(score_scenes()[30], 96) * 255).astype(np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((96, 96), np.uint8)
    mask[20:70, 10:50] = 255
    return mask


def both(
    pipeline: StableDiffusionInpaintPipeline, name: str, package: Path, image: np.ndarray, mask: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Latents and picture of diffusers, and ours."""
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        PROMPT, image=Image.fromarray(image), mask_image=Image.fromarray(mask), height=64, width=64, strength=strength,
        num_inference_steps=5, guidance_scale=3.0, generator=[torch.Generator().manual_seed(SEED)], output_type="latent",
    ).images  # fmt: skip
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    expected = pipeline.image_processor.postprocess(decoded, output_type="np")
    settings = Settings.one_prompt(
        PROMPT, SEED, steps=5, guidance=3.0, scheduler=name, image=image, mask=mask, strength=strength, height=64, width=64
    )
    result = inpaint(Package.open(package), settings)
    return latents.numpy(), result.latents, (expected * 255).round().astype(np.uint8), result.images


def inpainting(pipeline: StableDiffusionPipeline, **others: Any) -> StableDiffusionInpaintPipeline:
    return StableDiffusionInpaintPipeline(**{**pipeline.components, **others}, requires_safety_checker=False)


@pytest.mark.parametrize(
    ("scheduler_class", "name", "strength"),
    [(DDIMScheduler, "ddim", 1.0), (DDIMScheduler, "ddim", 0.6), (EulerAncestralDiscreteScheduler, "euler_ancestral", 0.8)],
)
def test_four_channels_blend_like_diffusers(
    scheduler_class: Any, name: str, strength: float, image: np.ndarray, mask: np.ndarray, tiny_package: Path,
    torch_pipeline: StableDiffusionPipeline,
) -> None:  # fmt: skip
    config = {"clip_sample": False} if name == "ddim" else {}
    pipeline = inpainting(torch_pipeline, scheduler=scheduler_class.from_config(torch_pipeline.scheduler.config, **config))
    expected, latents, expected_picture, picture = both(pipeline, name, tiny_package, image, mask, strength)
    assert snr_db(expected, latents) > LATENTS_DB
    assert np.abs(picture.astype(int) - expected_picture).max() <= NEAR


def test_nine_channels_see_mask_and_picture(
    image: np.ndarray, mask: np.ndarray, with_unet: Any, make_unet: Any, torch_pipeline: StableDiffusionPipeline
) -> None:
    unet = make_unet(9, in_channels=9)
    scheduler = EulerAncestralDiscreteScheduler.from_config(torch_pipeline.scheduler.config)
    pipeline = inpainting(torch_pipeline, scheduler=scheduler, unet=unet)
    package = with_unet(unet)
    for strength in (1.0, 0.7):
        expected, latents, expected_picture, picture = both(pipeline, "euler_ancestral", package, image, mask, strength)
        assert snr_db(expected, latents) > LATENTS_DB
        assert np.abs(picture.astype(int) - expected_picture).max() <= NEAR


def test_what_is_not_masked_stays(image: np.ndarray, mask: np.ndarray, tiny_package: Path) -> None:
    settings = Settings.one_prompt(PROMPT, steps=3, image=image, mask=mask, height=64, width=64)
    outside = mask[::12, ::12] < 128
    latents = inpaint(Package.open(tiny_package), settings).latents[0]
    other = inpaint(Package.open(tiny_package), Settings.one_prompt("x", steps=2, image=image, mask=mask, height=64, width=64)).latents[0]
    np.testing.assert_allclose(latents[:, outside], other[:, outside], atol=1e-5)
    assert np.abs(latents - other)[:, ~outside].max() > 0.1


def test_what_is_missing_is_named(image: np.ndarray, mask: np.ndarray, changed: Any) -> None:
    def five_channels(manifest: dict[str, Any]) -> None:
        manifest["components"]["unet"]["inputs"][0]["shape"][1] = 5

    package = Package.open(changed(five_channels))
    with pytest.raises(InputError, match="inpainting needs an image and a mask"):
        inpaint(package, Settings.one_prompt("x", image=image))
    with pytest.raises(InputError, match="inpainting needs a U-Net of 4 or 9 channels: this one has 5"):
        inpaint(package, Settings.one_prompt("x", image=image, mask=mask))
