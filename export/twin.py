"""A package of a target that is not here, as the CPU provider can run it: what parity is measured on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from graph_passes.contrib.expand import EXPAND_CONTRIB
from graph_passes.passes.round_half import ROUND_HALF
from graph_passes.precision import OWN_HALF
from graph_passes.step import Pass, run
from runtime.manifest import Package, files_below

ELSEWHERE = ("cuda",)  # targets whose graphs have operators that no other provider has kernels of


@contextmanager
def on_cpu(made: Package) -> Iterator[Package]:
    """`made`, or where its operators are another provider's alone its twin, in which their definitions stand in for them."""
    if made.manifest.target not in ELSEWHERE:
        yield made
        return
    with twin(made, (EXPAND_CONTRIB,)) as expanded:
        yield expanded


@contextmanager
def rounding(made: Package) -> Iterator[Package]:
    """`made`, or where it is of float16, which the CPU's provider computes in float32, its twin that rounds and overflows as float16 does
    (see `round_half`). The kernels of the target cpu do by themselves."""
    if made.manifest.precision != "fp16" or made.manifest.target in OWN_HALF:
        yield made
        return
    with twin(made, (ROUND_HALF,)) as rounded:
        yield rounded


@contextmanager
def twin(made: Package, passes: Sequence[Pass]) -> Iterator[Package]:
    """The twin of `made`, beside it as long as the block lasts: its graphs go through the passes, its other files are links."""
    with TemporaryDirectory(dir=made.path.parent, prefix=".twin-") as folder:
        graphs = {graph.file for entry in made.manifest.components.values() for graph in entry.graphs}
        for name in graphs:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            model = ir.load(made.path / name)
            run(model, passes)
            ir.save(model, Path(folder) / name)
        for name in files_below(made.path):  # last: weights are not read any more once their file has two names
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if name not in graphs:
                os.link(made.path / name, file)
        yield Package(Path(folder), replace(made.manifest, target="portable"))
