"""Every component of a model in its full size against torch, where a package of it and its checkpoint would not fit.

    python -m export.parity_full sdxl --weights random --target nnapi

One component at a time: torch runs on weights that are mapped from a file, the file makes room for the graph, and ONNX Runtime runs on
the graph's mapped weights. So memory holds the activations of one module, and the disk the weights of one component.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import click
from tqdm import tqdm

from export import package
from export.accelerator import TARGETS, fit, target_of
from export.build import Tuning, input_shapes
from export.component import Component
from export.defaults import pipeline
from export.families import family_of
from export.outline import put_weights
from export.parity import check_component
from export.reference import component_outputs, seeded_inputs
from export.trace import trace
from export.twin import on_cpu
from export.weights import Checkpoint, open_checkpoint
from graph_passes.errors import GraphError
from graph_passes.step import run
from runtime.cli import command
from runtime.errors import InputError
from runtime.manifest import Manifest, Package
from runtime.providers import provider
from runtime.session import Sessions

GB = 1e9
SAMPLE_SECONDS = 0.05
SPARE_BYTES = 0.2 * GB  # of disk: graphs, tokenizers


@dataclass(frozen=True)
class Row:
    """What was measured of a component. Seconds: torch with making its weights, tracing, passes, writing, ONNX Runtime with loading.
    `anonymous_gb` is the peak of memory that no file backs, `resident_gb` that of all, with the mapped weights."""

    component: str
    parameters: int
    snr_db: float
    max_abs: float
    torch_seconds: float
    trace_seconds: float
    passes_seconds: float
    write_seconds: float
    onnx_seconds: float
    anonymous_gb: float
    resident_gb: float


class Peak:
    """The most memory that this process was seen with, anonymous and resident, as the kernel tells; zeros where it does not."""

    def __init__(self) -> None:
        self.anonymous = self.resident = 0.0

    def sample(self) -> None:
        status = Path("/proc/self/status")
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.is_file() else {}
        self.anonymous = max(self.anonymous, 1024.0 * int(fields.get("RssAnon", "0 kB").split()[0]))
        self.resident = max(self.resident, 1024.0 * int(fields.get("VmRSS", "0 kB").split()[0]))


@contextmanager
def watched() -> Iterator[Peak]:
    """Samples memory in a thread until the block ends."""
    peak, over = Peak(), Event()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            peak.sample()

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        peak.sample()


def parity_full(checkpoint: Checkpoint, target: str, work: Path, step: Callable[[str], object] = str, only: tuple[str, ...] = (),
                ) -> Iterator[Row]:
    """Measures one component after the other, or those in `only`, at the model's own size, batch 1: with a dynamic graph or, for an
    accelerator, a static one and the host's part. Operators that the CPU's provider has not are computed by their definitions.

    Errors: InputError where the disk has too little room or `only` names no component, CheckFailed naming the component that differs or
    that the accelerator does not take whole.
    """
    needed = 4.0 * max(map(checkpoint.parameters, checkpoint.configs)) + SPARE_BYTES
    free = shutil.disk_usage(work).free
    if free < needed:
        raise InputError(f"the disk of '{work}' has {free / GB:.1f} GB free where the largest component needs {needed / GB:.1f} GB: free "
                         "some space or choose another disk with --work")
    try:
        Tuning().passes(target)
    except GraphError as error:
        raise InputError(str(error)) from error
    dynamic = target not in TARGETS
    defaults = pipeline(checkpoint, None, None, 1, dynamic)
    size = None if dynamic else (defaults["height"], defaults["width"])
    family, outline = family_of(checkpoint), checkpoint.outline()
    outlines = dict(family.components(outline, size, 1))
    if unknown := [name for name in only if name not in outlines]:
        raise InputError(f"'{checkpoint.alias}' has no component '{unknown[0]}': it has {', '.join(outlines)}")
    for name, build in family.components(checkpoint, size, 1):
        if only and name not in only:
            continue
        with watched() as peak:
            step(f"{name}: torch")
            clock = [time.perf_counter()]
            component = build()
            inputs = seeded_inputs(component, defaults["height"], defaults["width"], defaults["vae_scale_factor"])
            expected = component_outputs(component, inputs)
            parameters = component.parameters
            del component
            gc.collect()  # the mapping of its weights goes
            clock.append(time.perf_counter())

            step(f"{name}: trace")
            traced: Component = outlines[name]()
            model = trace(traced, dynamic)
            put_weights(model, outline)
            clock.append(time.perf_counter())
            step(f"{name}: passes")
            steps = run(model, Tuning().passes(target_of(name, target), input_shapes(traced, defaults)))
            host, plan = fit(name, model, target, allowed=1)
            clock.append(time.perf_counter())
            step(f"{name}: write")
            folder = work / "package"
            folder.mkdir()
            entry, files = package.write_component(folder, traced, model, steps, 0, host, plan)
            del traced, model, host
            manifest = Manifest(checkpoint.alias, checkpoint.source, target, "fp32", {}, defaults, {name: entry}, checkpoint.scheduler, {})
            package.finish(folder, manifest, files)
            clock.append(time.perf_counter())

            step(f"{name}: ONNX Runtime")
            with on_cpu(Package.open(folder)) as runnable, Sessions(runnable, provider("cpu"), low_memory=True) as sessions:
                found = check_component(sessions, name, inputs, expected)
            shutil.rmtree(folder)
            clock.append(time.perf_counter())
        in_torch, tracing, in_passes, writing, in_onnx = (round(after - before, 2) for before, after in pairwise(clock))
        yield Row(name, parameters, found["snr_db"], found["max_abs"], in_torch, tracing, in_passes, writing, in_onnx,
                  peak.anonymous / GB, peak.resident / GB)


@command
@click.argument("model")
@click.option("--weights", help="As for python -m export.")
@click.option("--target", default="portable", help="Any of python -m export, in float32.  [default: portable]")
@click.option("--component", "only", multiple=True, metavar="NAME", help="Only this one; repeatable.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build"), help="Where the package of one component has room.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write what was measured to this file.")
def main(model: str, weights: str | None, target: str, only: tuple[str, ...], work: Path, report: Path | None) -> None:
    """Holds every component of MODEL in full size against torch, one at a time, and prints what was measured."""
    work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=work) as scratch:
        (Path(scratch) / "weights").mkdir()
        checkpoint = open_checkpoint(model, weights, Path(scratch) / "weights")
        rows = []
        count = len(only) or len(family_of(checkpoint).components(checkpoint, None, 1))
        with tqdm(desc="parity", unit="step", total=5 * count) as bar:

            def step(what: str) -> None:
                bar.set_postfix_str(what)
                bar.update()

            for row in parity_full(checkpoint, target, Path(scratch), step, only):
                rows.append(row)
                bar.write(f"{row.component}: {row.parameters / 1e6:.1f} M, SNR {row.snr_db:.1f} dB, largest difference {row.max_abs:.2g}; "
                          f"torch {row.torch_seconds:.0f} s, ONNX Runtime {row.onnx_seconds:.0f} s, trace {row.trace_seconds:.0f} s, "
                          f"passes {row.passes_seconds:.0f} s; {row.anonymous_gb:.2f} GB anonymous, {row.resident_gb:.2f} GB resident")
    if report is not None:
        report.write_text(json.dumps({"model": checkpoint.alias, "target": target, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
