"""Every target's graphs against torch, on the CPU's provider: what an accelerator will be given computes what it should."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from graphs import run_in_runtime

from graph_passes.contrib.expand import EXPAND_CONTRIB
from graph_passes.passes.host import split_host
from graph_passes.passes.static_shapes import static_shapes
from graph_passes.pipelines import PORTABLE, TARGETS
from graph_passes.plan import plan
from graph_passes.step import run
from runtime.compare import snr_db

from ..architectures import Traced

# SD 1.x's U-Net is in test_one_partition.py and test_beside_the_cpu.py, cuda's VAE and text encoder in test_contrib.py; SDXL-Turbo has
# SDXL's graphs, and the refiner's differ in numbers alone
HOSTED = ("nnapi", "coreml", "qnn")  # the CPU computes the first of their nodes
CASES = [*(("sdxl_levels", target) for target in (*HOSTED, "xnnpack", "webgpu", "cuda")), ("vit-h", "nnapi"), ("vae_decoder", "nnapi")]
PARITY_DB = 90.0


def computed(model: ir.Model, host: ir.Model | None, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The output of a graph whose first nodes may be in another graph."""
    known = dict(feeds)
    if host is not None:
        results = run_in_runtime(host, {str(value.name): known[str(value.name)] for value in host.graph.inputs})
        known |= {str(value.name): array for value, array in zip(host.graph.outputs, results, strict=True)}
    (output,) = run_in_runtime(model, {str(value.name): known[str(value.name)] for value in model.graph.inputs})
    return output


@pytest.fixture(scope="module")
def portable(traced: Callable[..., Traced]) -> Callable[[], ir.Model]:
    """Gives the U-Net after the passes that most pipelines begin with, which run once."""
    export = traced("sdxl_levels", "dynamic")
    model = export.model()
    run(model, (static_shapes({name: array.shape for name, array in export.arrays()[0].items()}), *PORTABLE))
    return model.clone


@pytest.mark.parametrize(("architecture", "target"), CASES)
def test_a_target_gets_what_torch_computes(
    traced: Callable[..., Traced], portable: Callable[[], ir.Model], architecture: str, target: str
) -> None:
    export = traced(architecture, "dynamic")
    feeds, expected = export.arrays()
    if TARGETS[target][: len(PORTABLE)] == PORTABLE:
        model, passes = portable(), TARGETS[target][len(PORTABLE) :]
    else:
        model, passes = export.model(), (static_shapes({name: array.shape for name, array in feeds.items()}), *TARGETS[target])
    run(model, passes)
    host = split_host(model) if target in HOSTED else None
    if target in ("nnapi", "coreml"):
        made = plan(model, target)
        assert (made.taken, len(made.partitions)) == (made.nodes, 1)
    if target == "cuda":
        run(model, (EXPAND_CONTRIB,))
    assert snr_db(expected, computed(model, host, feeds)) >= PARITY_DB
