"""The second environment's pipelines over what `make interop` has exported; run by `make interop` only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/tiny"
EXPORTS = ROOT / "build/interop"


@pytest.fixture(scope="session")
def package() -> Path:
    """Our portable package of models/tiny."""
    return EXPORTS / "package"


@pytest.fixture(scope="session")
def optimum_export() -> Path:
    """optimum-cli's export of models/tiny (TorchScript)."""
    return EXPORTS / "optimum"


@pytest.fixture(scope="session")
def rewritten() -> Path:
    """The graphs of `optimum_export` after our passes."""
    return EXPORTS / "rewritten"


@pytest.fixture(scope="session")
def fused() -> Path:
    """The graphs of `optimum_export` with our custom ops, and what the passes said."""
    return EXPORTS / "fused"


@pytest.fixture(scope="session")
def torch_text_to_image() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)


@pytest.fixture(scope="session")
def torch_image_to_image(torch_text_to_image: StableDiffusionPipeline) -> StableDiffusionImg2ImgPipeline:
    return StableDiffusionImg2ImgPipeline(**torch_text_to_image.components, requires_safety_checker=False)


@pytest.fixture(scope="session")
def sdxl_package() -> Path:
    """Our portable package of tiny-sdxl."""
    return EXPORTS / "sdxl"


@pytest.fixture(scope="session")
def torch_sdxl() -> StableDiffusionXLPipeline:
    """diffusers' pipeline on the same weights."""
    return StableDiffusionXLPipeline.from_pretrained(EXPORTS / "sdxl-checkpoint", torch_dtype=torch.float32, add_watermarker=False)
