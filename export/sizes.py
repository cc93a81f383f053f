"""Several sizes over one file of weights: `unet/model.onnx` and `unet/model_512x768_batch2.onnx` share `unet/model.onnx_data`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export.component import Component
from export.families import family_of
from export.limits import FP32, Limits
from export.package import check_graph, hashed, host_entry, outer_inputs, ports_of
from export.parity import check_component
from export.reference import component_outputs, seeded_inputs
from export.twin import rounding
from export.weights import Checkpoint
from runtime.errors import InputError
from runtime.manifest import ComponentEntry, FileEntry, Package, SizeEntry
from runtime.providers import provider
from runtime.session import Sessions

Size = tuple[int, int, int]  # height and width in pixels, batch


def paired(heights: list[int], widths: list[int]) -> list[tuple[int, int]]:
    """Heights and widths side by side; one of either goes with all of the other. Errors: InputError where they are not as many."""
    longest = max(len(heights), len(widths))
    if any(len(sides) not in (1, longest) for sides in (heights, widths)):
        raise InputError(f"{len(heights)} heights and {len(widths)} widths make no pairs: give as many of both, or one of either")
    wide = [sides * longest if len(sides) == 1 else sides for sides in (heights, widths)]
    return list(dict.fromkeys(zip(*wide, strict=True)))


def further(pipeline: dict[str, Any]) -> list[Size]:
    """The sizes of a package beyond its first."""
    all_sizes = [(*size, batch) for size in pipeline.get("sizes", []) for batch in pipeline.get("batches", [pipeline["batch"]])]
    return [size for size in all_sizes if size != (pipeline["height"], pipeline["width"], pipeline["batch"])]


def components(checkpoint: Checkpoint, pipeline: dict[str, Any]) -> Iterator[tuple[Size, Component]]:
    """Every component at every further size at which it takes other shapes than before."""
    family = family_of(checkpoint)
    first = (pipeline["height"], pipeline["width"], pipeline["batch"])
    seen = {_shapes(make()) for _, make in family.components(checkpoint, first[:2], first[2])}
    for size in further(pipeline):
        for _, make in family.components(checkpoint, size[:2], size[2]):
            component = make()
            if (shapes := _shapes(component)) not in seen:
                seen.add(shapes)
                yield size, component


def _shapes(component: Component) -> tuple[object, ...]:
    return component.name, *(tuple(value.shape) for value in component.example_inputs.values())


def write_size(folder: Path, entry: ComponentEntry, component: Component, size: Size, model: ir.Model,
               host: ir.Model | None) -> tuple[SizeEntry, dict[str, FileEntry]]:
    """Writes the graph of a component for another size, which reads the weights of its first one; returns its entry and its files."""
    height, width, batch = size
    name = f"{height}x{width}" + (f"_batch{batch}" if batch > 1 else "")
    file = f"{component.name}/model_{name}.onnx"
    _share_weights(model, folder / entry.file)
    ir.save(model, folder / file)
    check_graph(folder, component.name, file)
    hosted, files, inputs = None, {file: hashed(folder / file)}, ports_of(model.graph.inputs)
    if host is not None and entry.host is not None:
        host_file = f"{component.name}/host_{name}.onnx"
        _share_weights(host, folder / entry.host.file)
        ir.save(host, folder / host_file)
        files[host_file] = hashed(folder / host_file)
        hosted = host_entry(host_file, files[host_file], host, entry.host.data)
        inputs = outer_inputs(component, inputs, hosted)
    return SizeEntry(*size, file, files[file].sha256, inputs, ports_of(model.graph.outputs), hosted), files


def _share_weights(model: ir.Model, first: Path) -> None:
    """Puts the first graph's references to its file of weights in the place of the same weights; the small rest stays in the graph."""
    known = {name: value.const_value for name, value in ir.load(first).graph.initializers.items()}
    for name, value in model.graph.initializers.items():
        stored, own = known.get(name), value.const_value
        if isinstance(stored, ir.ExternalTensor) and own is not None and (stored.dtype, stored.shape) == (own.dtype, own.shape):
            value.const_value = stored


def check_sizes(made: Package, checkpoint: Checkpoint, step: Callable[[str], object], ep: str = "cpu", limits: Limits = FP32,
                but: Collection[str] = ()) -> dict[str, dict[str, float]]:
    """Holds every further graph, `but` of those components, against torch; returns the worst of each component: {snr_db, max_abs}.

    What is found of float16 is found on the twin that rounds. Errors: CheckFailed.
    """
    worst: dict[str, dict[str, float]] = {}
    factor = made.manifest.pipeline["vae_scale_factor"]
    if not further(made.manifest.pipeline):
        return worst
    with rounding(made) as computed, Sessions(computed, provider(ep), low_memory=True) as sessions:
        for (height, width, batch), component in components(checkpoint, made.manifest.pipeline):
            if component.name in but:
                continue
            step(f"parity: {component.name} at {height}x{width}, batch {batch}")
            inputs = seeded_inputs(component, height, width, factor, batch=batch)
            found = check_component(sessions, component.name, inputs, component_outputs(component, inputs), limits)
            before = worst.get(component.name, found)
            worst[component.name] = {"snr_db": min(found["snr_db"], before["snr_db"]), "max_abs": max(found["max_abs"], before["max_abs"])}
            del component
            gc.collect()
    return worst
