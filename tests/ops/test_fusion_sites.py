"""Every site of the U-Nets of SDXL and of its refiner is found and fused: as many as torch's modules have layers of the kind.

What the fused graphs compute is held against torch in tests/export/test_sdxl.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention

from export.architecture import of_alias
from export.skeletons import skeleton
from graph_passes.files import load
from graph_passes.ops.attention import FUSE_FLASH_ATTENTION
from graph_passes.ops.gelu import FUSE_GELU
from graph_passes.ops.group_norm import FUSE_GROUP_NORM
from graph_passes.ops.winograd_conv import refused_convolutions, sites
from graph_passes.step import run

# norms, gates, attentions, 3x3 convolutions of stride 1 and 2: the published models', whose transformers are up to ten blocks deep
PUBLISHED = {"sdxl": (46, 70, 140, 38, 2), "sdxl-refiner": (56, 44, 88, 49, 3)}


def layers(alias: str) -> tuple[int, int, int, int, int]:
    """How many a U-Net has of each kind."""
    modules = list(skeleton("unet", of_alias(alias, "", f"{alias}.json").configs["unet"]).modules())
    strides = [each.stride for each in modules if isinstance(each, torch.nn.Conv2d) and each.kernel_size == (3, 3)]
    norms, gates, attentions = (sum(isinstance(each, kind) for each in modules) for kind in (torch.nn.GroupNorm, GEGLU, Attention))
    return norms, gates, attentions, strides.count((1, 1)), strides.count((2, 2))


@pytest.mark.parametrize("alias", PUBLISHED)
def test_every_site_is_fused(alias: str, request: pytest.FixtureRequest) -> None:
    """In a model of the same structure but for the depth of its transformers."""
    norms, gates, attentions, convolutions, strided = layers(f"tiny-{alias}")
    assert (norms, convolutions, strided) == (PUBLISHED[alias][0], *PUBLISHED[alias][3:])
    folder: Path = request.getfixturevalue({"sdxl": "sdxl_package", "sdxl-refiner": "refiner_package"}[alias])
    model = load(folder / "unet" / "model.onnx")
    assert (len(sites(model)), len(refused_convolutions(model))) == (convolutions, strided)
    assert all(sentence.endswith("its stride is 2x2, and the algorithm's is 1x1") for sentence in refused_convolutions(model))
    steps = run(model, (FUSE_GROUP_NORM, FUSE_GELU, FUSE_FLASH_ATTENTION))
    assert [(step.applied, step.refused) for step in steps] == [(norms, ()), (gates, ()), (attentions, ())]


@pytest.mark.parametrize("alias", PUBLISHED)
def test_the_published_models_have_so_many_sites(alias: str) -> None:
    assert layers(alias) == PUBLISHED[alias]
