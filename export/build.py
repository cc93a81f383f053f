"""The graphs of a package, built by two processes: tracing is pure Python, so that one process would leave a core idle.

This process builds the U-Net, half of the work, and a second one the other components. In each, weights are checked and graphs written in
threads beside the tracing, which they do not slow down: they hold no lock of Python's.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export import sizes
from export.accelerator import fit, target_of
from export.calibration import Measured, samples
from export.component import Component, Parts
from export.families import family_of
from export.outline import put_weights
from export.package import write_component
from export.reference import QUICK_SIDE, seeded_inputs
from export.trace import trace
from export.weights import Checkpoint, open_checkpoint
from graph_passes.errors import GraphError
from graph_passes.passes.half import Measure
from graph_passes.pipelines import for_target
from graph_passes.precision import measures
from graph_passes.step import Pass, run
from graph_passes.step import Step as PassStep
from graph_passes.work import count_macs
from runtime.errors import CheckFailed, HandheldError, InputError
from runtime.manifest import ComponentEntry, FileEntry

Step = Callable[[str], object]
HERE = ("unet",)  # what the first process builds


@dataclass(frozen=True)
class Tuning:
    """How the passes weigh: the least `precision` of products' operands, how many times the plain weights the package's may take
    (`memory_budget`, None: as many as it takes), and whose costs count (`costs`: a class of machines or a file, None: this machine's)."""

    precision: str = "fp32"
    memory_budget: float | None = None
    costs: str | None = None

    def passes(self, target: str, at: dict[str, tuple[int, ...]] | None = None, measure: Measure | None = None) -> tuple[Pass, ...]:
        """The pipeline of a target, for graphs that run at the input shapes `at`. Errors: GraphError."""
        return for_target(target, precision=self.precision, budget=self.memory_budget, costs=self.costs, at=at, measure=measure)


@dataclass(frozen=True)
class Order:
    """What both processes must know. `pipeline` is the manifest's; `folder` is where the package is staged, `work` is scratch space."""

    model: str
    weights: str | None
    allow_pickle: bool
    target: str
    pipeline: dict[str, Any]
    folder: Path
    work: Path
    tuning: Tuning = Tuning()
    allow_partitions: int = 1

    def parts(self, checkpoint: Checkpoint) -> Parts:
        size = None if self.pipeline["dynamic"] else (self.pipeline["height"], self.pipeline["width"])
        return family_of(checkpoint).components(checkpoint, size, max(1, self.pipeline["batch"]))


@dataclass(frozen=True)
class Built:
    """A component in its place: its entry in the manifest, and its files."""

    entry: ComponentEntry
    files: dict[str, FileEntry]


def build(order: Order, checkpoint: Checkpoint, step: Step) -> dict[str, Built]:
    """Builds all components, in both processes, in the order of `Order.parts`. `step` is told what begins.

    Errors: CheckFailed, InputError, OSError.
    """
    names = [name for name, _ in order.parts(checkpoint)]
    with _elsewhere(order, tuple(name for name in names if name not in HERE)) as others:
        built = _build(order, checkpoint, HERE, step)
        step("the other components")
        built |= others()
    return {name: built[name] for name in names}


def _build(order: Order, checkpoint: Checkpoint, names: tuple[str, ...], step: Step = str) -> dict[str, Built]:
    """Traces, rewrites and writes the named components, in this process."""
    sources = dict.fromkeys("vae" if name.startswith("vae_") else name for name in names)
    # threads that wait for nothing but the disk and for numpy
    with _worker() as reader, _worker() as writer:
        ahead = [reader.submit(checkpoint.check_finite, name) for name in sources]
        writing: dict[str, Future[tuple[ComponentEntry, dict[str, FileEntry]]]] = {}
        ranges: dict[str, Measured | None] = {}
        outline = checkpoint.outline()
        for name, make in order.parts(outline):
            if name not in names:
                continue
            _raise_failures([*ahead, *writing.values()])  # a full disk, before more is traced
            step(f"{name}: trace")
            component = make()
            model = trace(component, order.pipeline["dynamic"])
            put_weights(model, outline)
            step(f"{name}: passes")
            shapes = input_shapes(component, order.pipeline)
            ranges[name] = _measure(order, component)
            steps = _rewrite(name, model, order.tuning.passes(target_of(name, order.target), shapes, ranges[name]))
            macs = sum(count_macs(model, shapes).values())
            host, plan = fit(name, model, order.target, order.allow_partitions)
            shared = bool(sizes.further(order.pipeline))
            writing[name] = writer.submit(write_component, order.folder, component, model, steps, macs, host, plan, shared)
            del component, model, host
        for future in ahead:
            future.result()
        built = {name: Built(*future.result()) for name, future in writing.items()}
        for size, component in sizes.components(outline, order.pipeline):
            if component.name in built:
                step(f"{component.name}: {size[0]}x{size[1]}, batch {size[2]}")
                built[component.name] = _with_size(order, built[component.name], size, component, outline, ranges[component.name])
        return built


def _measure(order: Order, component: Component) -> Measured | None:
    """What tells the ranges of a component's values, where a pass asks for them."""
    if not measures(order.tuning.precision, order.target):
        return None
    height, width, factor, dynamic = (order.pipeline[key] for key in ("height", "width", "vae_scale_factor", "dynamic"))
    side = QUICK_SIDE if dynamic else max(height, width)
    return Measured(samples(order.work, component, min(height, side), min(width, side), factor))


def _rewrite(name: str, model: ir.Model, passes: tuple[Pass, ...]) -> list[PassStep]:
    try:
        return run(model, passes)
    except GraphError as error:
        raise CheckFailed(f"'{name}': {error}") from error


def _with_size(order: Order, built: Built, size: sizes.Size, component: Component, outline: Checkpoint,
               measure: Measured | None) -> Built:
    """A component with one more graph, for another size."""
    model = trace(component, dynamic=False)
    put_weights(model, outline)
    _rewrite(component.name, model, order.tuning.passes(target_of(component.name, order.target), measure=measure))
    host, _ = fit(component.name, model, order.target, order.allow_partitions)
    entry, files = sizes.write_size(order.folder, built.entry, component, size, model, host)
    return Built(replace(built.entry, sizes=(*built.entry.sizes, entry)), built.files | files)


@contextmanager
def _worker() -> Iterator[ThreadPoolExecutor]:
    """A thread that works off what it is given; what has not begun when the block fails never does."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _raise_failures(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        if future.done():
            future.result()


@contextmanager
def _elsewhere(order: Order, names: tuple[str, ...]) -> Iterator[Callable[[], dict[str, Built]]]:
    """Starts a second process on the named components; gives a function that waits for them.

    The process ends with the block, whatever happened in it. Errors: those of `build`; InputError where the process was killed;
    CheckFailed where it failed with an error that is none of ours.
    """
    if not names:
        yield dict
        return
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(order, names, sender), daemon=True)
    process.start()
    sender.close()  # ours: so that the end of the process is the end of the pipe

    def result() -> dict[str, Built]:
        try:
            kind, value = receiver.recv()
        except EOFError:
            process.join()
            if process.exitcode and process.exitcode > 0:  # an error that is nobody's: the process has written its traceback
                sentence = f"the process that exports {', '.join(names)} failed: what it says above is a fault of this program"
                raise CheckFailed(sentence) from None
            raise InputError(f"the process that exports {', '.join(names)} was killed: is there enough memory?") from None
        if kind == "failed":
            raise value
        built: dict[str, Built] = value
        return built

    try:
        yield result
    finally:
        process.terminate()
        process.join()
        receiver.close()


def _serve(order: Order, names: tuple[str, ...], sender: Connection) -> None:
    try:
        work = order.work / "elsewhere"
        work.mkdir()
        checkpoint = open_checkpoint(order.model, order.weights, work, allow_pickle=order.allow_pickle)
        sender.send(("built", _build(order, checkpoint, names)))
    except (HandheldError, OSError) as error:
        sender.send(("failed", error))


def input_shapes(component: Component, pipeline: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Input shapes of batch 1 at the default size, for counting work."""
    inputs = seeded_inputs(component, pipeline["height"], pipeline["width"], pipeline["vae_scale_factor"])
    return {name: array.shape for name, array in inputs.items()}
