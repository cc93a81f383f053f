"""The whole structure of Stable Diffusion's U-Net, lowered for an accelerator: one partition, and the same function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graphs import run_in_runtime

from graph_passes.passes.host import split_host
from graph_passes.passes.static_shapes import static_shapes
from graph_passes.pipelines import TARGETS
from graph_passes.plan import plan
from graph_passes.step import run
from runtime.compare import snr_db

from ..architectures import Traced


@pytest.mark.parametrize("target", ["nnapi", "coreml"])
def test_the_u_net_of_stable_diffusion_is_one_partition(traced: Callable[..., Traced], target: str) -> None:
    export = traced("unet", "dynamic")
    inputs, _ = export.arrays()
    feeds = {**inputs, "sample": np.random.default_rng(3).normal(size=(2, 4, 16, 8)).astype(np.float32)}
    model = export.model()
    run(model, (static_shapes({name: array.shape for name, array in feeds.items()}), *TARGETS[target]))
    host = split_host(model)
    assert host is not None
    made = plan(model, target)
    assert (made.taken, len(made.partitions)) == (made.nodes, 1)
    assert made.checker == (made.nodes, 1)

    (expected,) = run_in_runtime(export.model(), feeds)
    hosted = run_in_runtime(host, {str(value.name): feeds[str(value.name)] for value in host.graph.inputs})
    feeds |= {str(value.name): array for value, array in zip(host.graph.outputs, hosted, strict=True)}
    (got,) = run_in_runtime(model, {str(value.name): feeds[str(value.name)] for value in model.graph.inputs})
    assert snr_db(expected, got) >= 90
