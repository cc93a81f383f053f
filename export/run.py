"""One export, from the open checkpoint to the package in its place."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from export import package, qnn
from export.accelerator import ON_CPU, require_static
from export.build import Order, Tuning, build
from export.calibration import prompts
from export.calibration import record as record_inputs
from export.context_binary import require_compiler
from export.defaults import pipeline
from export.estimate import UNBOUNDED_GROWTH, estimate, require
from export.families import family_of
from export.limits import FP32, Limits
from export.parity import SMALL, check_package
from export.reference import Oracle, ask
from export.sizes import check_sizes
from export.twin import on_cpu
from export.weights import open_checkpoint
from graph_passes.errors import GraphError
from graph_passes.precision import measures, stored_bits
from runtime.errors import InputError
from runtime.manifest import Manifest, Package
from runtime.snapdragon import DEFAULT, soc

TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "handheld-diffusion")


@dataclass(frozen=True)
class Request:
    """What is to be exported, and how. `height` and `width` are None for the model's own; `check` is None for full or quick by size.

    `sizes` (height, width) and `batches` hold all of them, these first, where a static package has several. `soc` is the Snapdragon that
    the target qnn compiles for, None for the usual one.
    """

    model: str
    out: Path
    weights: str | None = None
    target: str = "portable"
    precision: str = "fp32"
    height: int | None = None
    width: int | None = None
    batch: int = 1
    dynamic: bool = True
    check: str | None = None
    force: bool = False
    allow_pickle: bool = False
    memory_budget: float | None = None
    costs: str | None = None
    allow_partitions: int = 1
    sizes: tuple[tuple[int, int], ...] = ()
    batches: tuple[int, ...] = ()
    soc: str | None = None


def export(request: Request, say: Callable[[str], object] = print) -> Package:
    """Exports a package; it appears at `request.out` when everything has held, and not at all otherwise.

    Errors: InputError and Unavailable before the work starts, CheckFailed where a graph differs from torch.
    """
    tuning = Tuning(request.precision, request.memory_budget, request.costs)
    try:
        tuning.passes(request.target)
    except GraphError as error:
        raise InputError(str(error)) from error
    require_static(request.target, request.dynamic)
    chip = None
    if request.target == "qnn":
        chip = soc(request.soc or DEFAULT)
        require_compiler()
    elif request.soc is not None:
        raise InputError(f"--soc names what the target qnn compiles for, and the target is {request.target}: leave it out")
    with package.staged(request.out, request.force) as staging:
        checkpoint = open_checkpoint(request.model, request.weights, staging.work, allow_pickle=request.allow_pickle)
        defaults = pipeline(checkpoint, request.height, request.width, request.batch, request.dynamic)
        if len(request.sizes) > 1 or len(request.batches) > 1:
            all_sizes = request.sizes or ((defaults["height"], defaults["width"]),)
            defaults |= {"sizes": [list(size) for size in all_sizes], "batches": list(request.batches)}
        order = Order(request.model, request.weights, request.allow_pickle, request.target, defaults, staging.package, staging.work,
                      tuning, request.allow_partitions)
        parameters = sum(map(checkpoint.parameters, checkpoint.configs))
        check = request.check or ("full" if parameters <= SMALL else "quick")
        growth = 1.0 if request.target != "cpu" else request.memory_budget or UNBOUNDED_GROWTH
        needed = estimate(checkpoint, check, growth, chip is not None, stored_bits(request.precision, request.target),
                          measures(request.precision, request.target))
        say(f"{checkpoint.alias}: {parameters / 1e6:.1f} M parameters; this takes {needed}; check: {check}")
        require(needed, request.out)
        checkpoint.hashes.start()

        names = [name for name, _ in order.parts(checkpoint)]
        compiled = 0 if chip is None else len(set(names).difference(ON_CPU))
        measured = measures(request.precision, request.target)
        calibrated = (1 if parameters > SMALL else len(prompts(checkpoint.alias))) if measured else 0
        total = 4 + calibrated + compiled + (0 if check == "none" else 2 + 2 * len(names) + compiled)
        with tqdm(total=total, desc="export", unit="step") as bar:
            step = partial(_begin, bar)
            if measured:
                record_inputs(checkpoint, defaults, parameters > SMALL, staging.work, step)
            built = build(order, checkpoint, step)
            step("manifest")
            package.copy_files(staging.package, checkpoint.files)
            family = family_of(checkpoint)
            scheduler = family.scheduler_config(checkpoint)
            package.write_index(staging.package, family.index(checkpoint), scheduler)
            tools = {name: importlib.metadata.version(name) for name in TOOLS}
            hashed = {name: file for part in built.values() for name, file in part.files.items()}
            manifest = Manifest(checkpoint.alias, checkpoint.provenance(), request.target, request.precision, tools, defaults,
                                {name: part.entry for name, part in built.items()}, scheduler, {})
            package.finish(staging.package, manifest, hashed)
            oracle = None if check == "none" else ask(checkpoint, defaults, check, staging.work, step)
            if oracle is not None:
                # what is compiled to float16 later is float32 until then
                later = chip is not None and request.precision == "fp16"
                limits = FP32 if later else Limits.of_precision(request.precision, request.target)
                record(Package.open(staging.package), oracle, step, limits)
                with on_cpu(Package.open(staging.package)) as runnable:
                    check_sizes(runnable, checkpoint, step, limits=limits)
            if chip is not None:
                if oracle is not None and request.precision == "fp16":
                    qnn.require_half(Package.open(staging.package), oracle)
                made = qnn.compile_package(Package.open(staging.package), chip, request.allow_partitions, staging.work, step)
                if oracle is not None:
                    qnn.check_emulated(made, oracle, checkpoint, check, step)
            bar.update(bar.total - bar.n)
    return Package.open(request.out)


def record(made: Package, oracle: Oracle, step: Callable[[str], object], limits: Limits | None = None) -> None:
    """Holds a package against torch and writes what was measured, and both pictures, into it. `limits`: those of its precision where they
    are not given. Errors: CheckFailed."""
    with on_cpu(made) as runnable:
        found = check_package(runnable, oracle, step, limits)
    package.write_pictures(made.path, oracle.trajectory.picture, found.picture)
    entries = {name: replace(entry, parity=found.components[name]) for name, entry in made.manifest.components.items()}
    package.finish(made.path, replace(made.manifest, components=entries, trajectory_parity=found.trajectory), made.manifest.files)


def _begin(bar: tqdm, what: str) -> None:
    """Shows that a step begins, and so that the one before it has ended."""
    if bar.postfix:
        bar.update()
    bar.set_postfix_str(what)
