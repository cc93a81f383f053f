"""Every target's graphs against torch, on the CPU's provider: what an accelerator will be given computes what it should."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import takewhile

import numpy as np
import onnx_ir as ir
import pytest
from graphs import run_in_runtime

from graph_passes.contrib.expand import EXPAND_CONTRIB
from graph_passes.passes.host import split_host
from graph_passes.passes.static_shapes import static_shapes
from graph_passes.pipelines import COREML, NNAPI, PORTABLE, TARGETS
from graph_passes.plan import plan
from graph_passes.step import Pass, run
from runtime.compare import snr_db

from ..architectures import Traced

# SD 1.x's U-Net is in test_one_partition.py and test_beside_the_cpu.py, cuda's VAE and text encoder in test_contrib.py; SDXL-Turbo has
# SDXL's graphs; the refiner's go where most is lowered
HOSTED = ("nnapi", "coreml", "qnn")  # the CPU computes the first of their nodes
CASES = [*(("sdxl_levels", target) for target in (*HOSTED, "xnnpack", "webgpu", "cuda")),
         *((architecture, "nnapi") for architecture in ("refiner_levels", "vit-h-2", "vae_decoder"))]
PARITY_DB = 90.0
BEGINNINGS = (PORTABLE, tuple(each for each, _ in takewhile(lambda pair: pair[0] == pair[1], zip(NNAPI, COREML, strict=False))))


def computed(model: ir.Model, host: ir.Model | None, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The output of a graph whose first nodes may be in another graph."""
    known = dict(feeds)
    if host is not None:
        results = run_in_runtime(host, {str(value.name): known[str(value.name)] for value in host.graph.inputs})
        known |= {str(value.name): array for value, array in zip(host.graph.outputs, results, strict=True)}
    (output,) = run_in_runtime(model, {str(value.name): known[str(value.name)] for value in model.graph.inputs})
    return output


@pytest.fixture(scope="module")
def begun(traced: Callable[..., Traced]) -> Callable[[str, str], tuple[ir.Model, tuple[Pass, ...]]]:
    """Gives an architecture after the passes that several targets begin with, which run once, and those that are left for a target."""

    @functools.cache
    def after(architecture: str, first: tuple[Pass, ...]) -> ir.Model:
        export = traced(architecture, "dynamic")
        model = export.model()
        run(model, (static_shapes({name: array.shape for name, array in export.arrays()[0].items()}), *first))
        return model

    def graph(architecture: str, target: str) -> tuple[ir.Model, tuple[Pass, ...]]:
        passes = TARGETS[target]
        first = next(each for each in BEGINNINGS if passes[: len(each)] == each)
        return after(architecture, first).clone(), passes[len(first) :]

    return graph


@pytest.mark.parametrize(("architecture", "target"), CASES)
def test_a_target_gets_what_torch_computes(
    traced: Callable[..., Traced], begun: Callable[[str, str], tuple[ir.Model, tuple[Pass, ...]]], architecture: str, target: str
) -> None:
    feeds, expected = traced(architecture, "dynamic").arrays()
    model, passes = begun(architecture, target)
    run(model, passes)
    host = split_host(model) if target in HOSTED else None
    if target in ("nnapi", "coreml"):
        made = plan(model, target)
        assert (made.taken, len(made.partitions)) == (made.nodes, 1)
    if target == "cuda":
        run(model, (EXPAND_CONTRIB,))
    assert snr_db(expected, computed(model, host, feeds)) >= PARITY_DB
