"""One export, from the open checkpoint to the package in its place."""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from export import package, parity, reference
from export.component import Component
from export.estimate import Estimate, estimate, require
from export.families import sd
from export.trace import trace
from export.weights import Checkpoint, open_checkpoint
from graph_passes.errors import GraphError
from graph_passes.pipelines import for_target
from graph_passes.step import run
from graph_passes.work import count_macs
from runtime import schedulers
from runtime.errors import InputError
from runtime.manifest import ComponentEntry, Manifest, Package

CHECKS = ("full", "quick", "none")
SMALL = 100_000_000  # parameters: up to here the full check takes seconds
FULL_STEPS, QUICK_STEPS = 20, 2
QUICK_SIDE = 512  # pixels of the quick check's pictures, at most
TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "handheld-diffusion")
PROMPTS = {"tiny": "a red circle above a blue square on a yellow background"}
PROMPT = "a photo of an astronaut riding a horse on mars"


@dataclass(frozen=True)
class Request:
    """What is to be exported, and how. `height` and `width` are None for the model's own; `check` is None for full or quick by size."""

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


def export(request: Request, say: Callable[[str], object] = print) -> Package:
    """Exports a package; it appears at `request.out` when everything has held, and not at all otherwise.

    Errors: InputError and Unavailable before the work starts, CheckFailed where a graph differs from torch.
    """
    if request.precision != "fp32":
        raise InputError(f"the precision '{request.precision}' is not there yet: this version exports fp32")
    try:
        passes = for_target(request.target)
    except GraphError as error:
        raise InputError(str(error)) from error
    with package.staged(request.out, request.force) as staging:
        checkpoint = open_checkpoint(request.model, request.weights, staging.work, allow_pickle=request.allow_pickle)
        defaults = _defaults(checkpoint, request)
        parts = sd.components(checkpoint, None if request.dynamic else (defaults["height"], defaults["width"]), request.batch)
        check = request.check or ("full" if sum(map(checkpoint.parameters, checkpoint.configs)) <= SMALL else "quick")
        needed = estimate(checkpoint, check)
        say(f"{checkpoint.alias}: {_megabytes(needed)}; this takes {needed}; check: {check}")
        require(needed, request.out)

        side = (defaults["height"], defaults["width"])
        if check == "quick" and request.dynamic:
            side = (min(side[0], QUICK_SIDE), min(side[1], QUICK_SIDE))
        entries: dict[str, ComponentEntry] = {}
        oracle: dict[str, tuple[reference.Arrays, reference.Arrays]] = {}
        with tqdm(total=len(parts) * 4 + 3, desc="export", unit="step") as bar:
            for name, build in parts:
                bar.set_postfix_str(f"{name}: trace")
                component = build()
                model = trace(component, request.dynamic)
                bar.update()
                bar.set_postfix_str(f"{name}: passes")
                steps = run(model, passes)
                bar.update()
                bar.set_postfix_str(f"{name}: write")
                file, data = package.write_graph(staging.package, name, model)
                macs = sum(count_macs(model, _shapes(component, defaults)).values())
                entries[name] = package.entry(component, model, file, data, steps, macs, None)
                package.write_config(staging.package, name, component.config)
                del model
                bar.update()
                if check != "none":
                    bar.set_postfix_str(f"{name}: torch")
                    inputs = _inputs(component, side, request.dynamic, defaults["vae_scale_factor"])
                    oracle[name] = (inputs, reference.component_outputs(component, inputs))
                bar.update()
                del component
                gc.collect()
            package.copy_files(staging.package, checkpoint.files)
            scheduler = sd.scheduler_config(checkpoint)
            package.write_index(staging.package, checkpoint.configs, scheduler)
            tools = {name: importlib.metadata.version(name) for name in TOOLS}
            manifest = Manifest(checkpoint.alias, checkpoint.provenance(), request.target, request.precision, tools, defaults, entries,
                                scheduler, {})
            bar.set_postfix_str("hashes")
            manifest = package.finish(staging.package, manifest)
            bar.update()
            if check != "none":
                bar.set_postfix_str("trajectory: torch")
                prompt = PROMPTS.get(checkpoint.alias, PROMPT)
                taken = reference.walk(prompt, FULL_STEPS if check == "full" else QUICK_STEPS, defaults["guidance"], *side,
                                       checkpoint.configs["unet"], defaults["vae_scale_factor"])
                expected = reference.torch_trajectory(checkpoint, taken, staging.work)
                gc.collect()
                bar.update()
                bar.set_postfix_str("trajectory: package")
                manifest = check_package(Package.open(staging.package), oracle, taken, expected)
            bar.update(bar.total - bar.n)
            bar.set_postfix_str("")
    return Package.open(request.out)


def check_package(made: Package, oracle: dict[str, tuple[reference.Arrays, reference.Arrays]], taken: reference.Walk,
                  expected: reference.Trajectory) -> Manifest:
    """Holds a package against torch, component by component and along a trajectory; writes what was measured into its manifest.

    Errors: CheckFailed naming the component.
    """
    entries = dict(made.manifest.components)
    with parity.open_sessions(made) as sessions:
        for name, (inputs, outputs) in oracle.items():
            entries[name] = replace(entries[name], parity=parity.check_component(sessions, name, inputs, outputs))
        walked = parity.package_trajectory(sessions, taken)
    found = parity.compare(expected, walked, taken)
    parity.save_pictures(made.path, expected, walked)
    return package.finish(made.path, replace(made.manifest, components=entries, trajectory_parity=found), made.manifest.files)


def _defaults(checkpoint: Checkpoint, request: Request) -> dict[str, Any]:
    """The manifest's `pipeline`: what runs the components together, and the defaults of a picture. Errors: InputError for sizes."""
    unet, vae = checkpoint.configs["unet"], checkpoint.configs["vae"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    for name, side in (("height", request.height), ("width", request.width)):
        if side is not None and (side <= 0 or side % factor):
            raise InputError(f"a {name} of {side} is not possible: it must be a positive multiple of {factor}")
    if request.batch < 1:
        raise InputError(f"a batch of {request.batch} is not possible: give 1 or more")
    own = int(unet["sample_size"]) * factor
    return {
        "family": checkpoint.family,
        "height": request.height or own,
        "width": request.width or own,
        "batch": 0 if request.dynamic else request.batch,
        "dynamic": request.dynamic,
        "vae_scale_factor": factor,
        "scaling_factor": float(vae.get("scaling_factor", 0.18215)),
        "latent_channels": int(vae["latent_channels"]),
        "prediction_type": checkpoint.scheduler.get("prediction_type", "epsilon"),
        "steps": 20,
        "guidance": 4.0 if checkpoint.alias == "tiny" else 7.5,
        "scheduler": schedulers.make(checkpoint.scheduler).name,
    }


def _inputs(component: Component, side: tuple[int, int], dynamic: bool, factor: int) -> reference.Arrays:
    """Seeded inputs: of a dynamic package at another batch and at sides that are no multiple of what it was traced at."""
    if not dynamic:
        return reference.seeded_inputs(component, *side, factor, batch=next(iter(component.example_inputs.values())).shape[0])
    return reference.seeded_inputs(component, side[0] // 2, side[1] // 2 + factor, factor)


def _shapes(component: Component, defaults: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Input shapes of batch 1 at the default size, for counting work."""
    inputs = reference.seeded_inputs(component, defaults["height"], defaults["width"], defaults["vae_scale_factor"])
    return {name: array.shape for name, array in inputs.items()}


def _megabytes(needed: Estimate) -> str:
    return f"{needed.package / 4e6:.1f} M parameters"
