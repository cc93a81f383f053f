"""Every site of the U-Nets of SDXL and of its refiner, whose transformers are up to ten blocks deep, is found and fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from graph_passes.ops.attention import FUSE_FLASH_ATTENTION
from graph_passes.ops.gelu import FUSE_GELU
from graph_passes.ops.group_norm import FUSE_GROUP_NORM
from graph_passes.ops.winograd_conv import refused_convolutions, sites
from graph_passes.pipelines import PORTABLE
from graph_passes.step import run

from ..architectures import Traced
from .harness import hold_against_torch


@pytest.mark.parametrize(
    ("architecture", "norms", "gates", "attentions", "convolutions", "strided"),
    [("sdxl", 46, 70, 140, 38, 2), ("refiner", 56, 44, 88, 49, 3)],
)
def test_every_site_is_fused(
    ops_library: Path,
    traced: Callable[..., Traced],
    architecture: str,
    norms: int,
    gates: int,
    attentions: int,
    convolutions: int,
    strided: int,
) -> None:
    export = traced(architecture, "static")
    model = export.model()
    run(model, PORTABLE)
    assert (len(sites(model)), len(refused_convolutions(model))) == (convolutions, strided)
    assert all(sentence.endswith("its stride is 2x2, and the algorithm's is 1x1") for sentence in refused_convolutions(model))
    steps = run(model, (FUSE_GROUP_NORM, FUSE_GELU, FUSE_FLASH_ATTENTION))
    assert [(step.applied, step.refused) for step in steps] == [(norms, ()), (gates, ()), (attentions, ())]
    ops = Counter(node.op_type for node in model.graph if node.domain == "handheld")
    assert ops["GroupNorm"] + ops["GroupNormSilu"] == norms
    assert (ops["Geglu"], ops["FlashAttention"]) == (gates, attentions)
    hold_against_torch(model, export, ops_library)
