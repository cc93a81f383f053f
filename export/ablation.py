"""What each optimization is worth on this machine: the U-Net and the decoder measured with one more of them in every row.

    python -m export.ablation PACKAGE CHECKPOINT [--json F]

The rows are those of table 1 of Chen et al., "Speed Is All You Need: On-Device Acceleration of Large Diffusion Models via GPU-Aware
Optimizations", 2023, and one more. PACKAGE is a portable one, the baseline. Each row is a graph for as long as it is measured.
"""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx_ir as ir
from tqdm import tqdm

from export.families import family_of
from export.package import CUSTOM_OPS_DOMAIN, INLINE_TENSOR_BYTES, finish, write_graph
from export.reference import component_outputs
from export.weights import Checkpoint, open_checkpoint
from graph_passes.costs import table as costs_of
from graph_passes.errors import GraphError
from graph_passes.files import load
from graph_passes.ops.attention import FUSE_FLASH_ATTENTION, FUSE_PARTIAL_SOFTMAX_ATTENTION
from graph_passes.ops.gelu import FUSE_GELU
from graph_passes.ops.group_norm import FUSE_GROUP_NORM
from graph_passes.ops.linear import fuse_linear, fuse_pointwise
from graph_passes.passes.attach_bodies import ATTACH_BODIES
from graph_passes.passes.winograd import Policy, winograd
from graph_passes.step import Pass, run
from runtime.bench import start
from runtime.cli import command
from runtime.compare import decibels, snr_db
from runtime.errors import CheckFailed, InputError
from runtime.inputs import example_inputs, size_of
from runtime.machine import describe
from runtime.manifest import Package
from runtime.measure import Job

COMPONENTS = ("unet", "vae_decoder")
LEAST_SNR_DB = 90.0  # of every row against torch: a row that computes something else is worth nothing
Row = dict[str, Any]


def rows(policy: Policy) -> tuple[tuple[str, tuple[Pass, ...]], ...]:
    """(name, what a portable graph goes through) of each row. Winograd's convolutions come first in the pipeline, and last in the table."""
    first = (FUSE_GROUP_NORM, FUSE_GELU)
    return (
        ("baseline", ()),
        ("GroupNorm + GELU", first),
        ("partially fused softmax", (*first, FUSE_PARTIAL_SOFTMAX_ATTENTION)),
        ("FlashAttention", (*first, FUSE_FLASH_ATTENTION)),
        ("Winograd", (winograd(policy), *first, FUSE_FLASH_ATTENTION)),
        # as --target cpu has them
        ("linear layers", (winograd(policy), *first, FUSE_FLASH_ATTENTION, fuse_linear("fp32"), fuse_pointwise("fp32"))),
    )


def ablation(package: Package, checkpoint: Checkpoint, height: int, width: int, repeat: int, threads: int,
             step: Callable[[str], object] = str) -> list[Row]:
    """Measures all rows of all components that the package has.

    A row: {row, component, the figures of `runtime.measure`, `baseline_ms` (the mean of the baseline's medians before and after the row,
    because machines change their speed within minutes), `reduction` (of the median against it), `snr_db` (against torch),
    `custom_ops` {op: nodes}}. Errors: CheckFailed where a row is too far from torch; InputError for a package of another target.
    """
    if package.manifest.target != "portable":
        raise InputError(f"'{package.path}' is made for {package.manifest.target}: the baseline of an ablation is a portable package")
    measured: list[Row] = []
    parts = dict(family_of(checkpoint).components(checkpoint, None, 1))
    for name in COMPONENTS:
        if name not in package.manifest.components or name not in parts:
            continue
        step(f"{name}: torch")
        inputs = example_inputs(package, name, height, width)
        expected = component_outputs(parts[name](), inputs)
        gc.collect()  # the module's weights leave memory before a graph's come
        policy = Policy(costs_of(), shapes={key: array.shape for key, array in inputs.items()})
        before = 0.0
        for title, passes in rows(policy):
            step(f"{name}: {title}")
            with TemporaryDirectory(dir=package.path.parent, prefix=".ablation-") as folder:
                made, ops = _variant(package, name, passes, Path(folder))
                outputs = Path(folder) / "outputs.npz"
                job = Job(str(made.path), "cpu", name, height, width, 0, repeat, 1, threads, str(outputs))
                figures = start(job, Path(folder))
                with np.load(outputs) as got:
                    snr = min(snr_db(expected[output], got[output]) for output in expected)
                if snr < LEAST_SNR_DB:
                    raise CheckFailed(f"'{name}' with {title} has {snr:.1f} dB against torch where {LEAST_SNR_DB:.0f} are asked for: its "
                                      "time would mean nothing")
                plain = replace(job, package=str(package.path), outputs="")
                after = start(plain, Path(folder))["median_ms"] if passes else figures["median_ms"]
            figures.pop("calls")
            baseline = ((before or after) + after) / 2
            before = after
            compared = {"baseline_ms": baseline, "reduction": round(1 - figures["median_ms"] / baseline, 4), "snr_db": round(snr, 2)}
            measured.append({"row": title, "component": name, **figures, **compared, "custom_ops": ops})
    return measured


def _variant(package: Package, name: str, passes: Sequence[Pass], folder: Path) -> tuple[Package, dict[str, int]]:
    """A package in `folder` of one component after `passes`, and its custom ops. Weights that stayed as they were are not copied.

    Errors: InputError where the graph cannot be read, or its weights lie in a file of several names.
    """
    entry = package.manifest.components[name]
    try:
        model = load(package.file(name))
    except GraphError as error:
        raise InputError(str(error)) from error
    run(model, (*passes, ATTACH_BODIES) if passes else ())
    made = folder / "package"
    (made / name).mkdir(parents=True)
    large = [value.const_value for value in model.graph.initializers.values()
             if value.const_value is not None and value.const_value.nbytes >= INLINE_TENSOR_BYTES]
    if entry.data and all(isinstance(tensor, ir.ExternalTensor) for tensor in large):
        file, data = f"{name}/model.onnx", entry.data
        os.link(package.path / data, made / data)
        ir.save(model, made / file)
    else:
        file, data = write_graph(made, name, model)
    ops = Counter(node.op_type for node in model.graph.all_nodes() if node.domain == CUSTOM_OPS_DOMAIN)
    one = {name: replace(entry, file=file, data=data, custom_ops=dict(ops))}
    known = {data: package.manifest.files[entry.data]} if data and (made / data).samefile(package.path / entry.data) else None
    finish(made, replace(package.manifest, components=one, files={}), known)
    return Package.open(made), dict(ops)


def table(measured: Sequence[Row]) -> str:
    """The rows for a terminal: the median, the baseline's around it, the reduction, the SNR against torch, the peak memory."""
    lines = [f"{'':26}{'ms':>10}{'baseline':>10}{'reduction':>11}{'SNR':>11}{'peak MB':>9}"]
    for name in dict.fromkeys(row["component"] for row in measured):
        lines.append(name)
        for row in (each for each in measured if each["component"] == name):
            change, snr = f"{-100 * row['reduction'] + 0.0:.1f} %", decibels(row["snr_db"])
            times = f"{row['median_ms']:10.1f}{row['baseline_ms']:10.1f}"
            lines.append(f"  {row['row']:24}{times}{change:>11}{snr:>11}{row['peak_rss_mb']:9.0f}")
    return "\n".join(lines)


@command
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("checkpoint")
@click.option("--weights", help="As for python -m export.")
@click.option("--height", type=int, help="Of the picture, in pixels; the package's own where it is not given.")
@click.option("--width", type=int, help="Likewise.")
@click.option("--repeat", default=5, help="Timed runs of each row.")
@click.option("--threads", default=0, help="Threads of one operator; 0: one per core.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows here, for runtime.report --ablation.")
def main(package: Path, checkpoint: str, weights: str | None, height: int | None, width: int | None, repeat: int, threads: int,
         json_file: Path | None) -> None:
    """Measures PACKAGE, a portable one of CHECKPOINT, with one optimization more in each row."""
    opened = Package.open(package)
    sides = size_of(opened, height, width)
    with TemporaryDirectory(dir=opened.path.parent, prefix=".ablation-") as work, tqdm(desc="ablation", unit="row", total=14) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        measured = ablation(opened, open_checkpoint(checkpoint, weights, Path(work)), *sides, repeat, threads, step)
    click.echo(table(measured))
    if json_file:
        settings = {"height": sides[0], "width": sides[1], "repeat": repeat, "threads": threads}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({"machine": describe(), "settings": settings, "rows": measured}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
