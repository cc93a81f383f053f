"""A package's graphs -> context binaries for one Snapdragon, in their place; and the proof in QNN's emulator that they compute the same."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export import package
from export.accelerator import ON_CPU
from export.calibration import Measured
from export.context_binary import PLUGIN, Compiled, compile_graph, compiler_version, summary
from export.limits import A16W8, Limits
from export.parity import check_component
from export.reference import Oracle
from export.sizes import check_sizes
from export.weights import Checkpoint
from graph_passes.passes.half import LARGEST
from runtime.errors import CheckFailed
from runtime.manifest import ComponentEntry, ContextEntry, Package, inside
from runtime.providers import provider
from runtime.session import Sessions
from runtime.snapdragon import Soc, worth_emulating

# Operands in half precision have a relative error of 2^-11 / sqrt(3): 71 dB for one product with exact sums. HTP v73 and later also sum in
# half precision: one convolution over 4,608 products has 48 dB in the emulator, one over 36 has 50.
# Of a16w8 the CPU's provider computes the same codes: what the weights' 8 bits leave there, they must leave here.
LIMITS = {"fp16": Limits(component_snr_db=40.0), "a16w8": A16W8}

DECODER = "vae_decoder"

Step = Callable[[str], object]


def require_half(made: Package, oracle: Oracle) -> None:
    """Refuses a decoder whose values leave float16, as SDXL's do: the NPU computes in nothing else, and its pictures would be black.

    `made` is not compiled yet. Its decoder runs on the oracle's seeded latents and on those that torch's trajectory ended with.
    Errors: CheckFailed.
    """
    ended = oracle.trajectory.latents[-1][-1:] / made.manifest.pipeline["scaling_factor"]
    inputs = [oracle.components[DECODER][0], {"latent_sample": ended.astype("float32")}]
    ranges = Measured(inputs)(ir.load(inside(made.path, made.manifest.components[DECODER].file)))
    name, peak = max(((name, max(-least, largest)) for name, (least, largest) in ranges.items()), key=lambda entry: entry[1])
    if peak > LARGEST:
        raise CheckFailed(
            f"'{DECODER}' reaches {peak:.3g} in '{name}', where float16 ends at 65,504, and a Snapdragon's NPU has no float32: its "
            "pictures would be black. Give a checkpoint whose decoder was made for float16, or export for another target"
        )


def compile_package(made: Package, soc: Soc, allowed: int, work: Path, step: Step = str) -> Package:
    """Compiles every component but those of the CPU, and puts graph and binary in the place of graph and weights; hosts stay.

    Each size has a binary of its own: binaries with shared weights compile too, but the emulator does not load them.
    Errors: CheckFailed where one falls into more than `allowed` partitions; those of `compile_graph`.
    """
    components = {}
    for name, entry in made.manifest.components.items():
        if name not in ON_CPU:
            step(f"{name}: compile for {soc.name}")
            entry = _compile_component(made, name, entry, soc, allowed, work)
        components[name] = entry
    changed = {file for entry in components.values() for graph in entry.graphs if graph.context for file in (graph.file, graph.data)}
    unchanged = {file: known for file, known in made.manifest.files.items() if file not in changed}
    package.finish(made.path, replace(made.manifest, components=components), unchanged)
    return Package.open(made.path)


def _compile_component(made: Package, name: str, entry: ComponentEntry, soc: Soc, allowed: int, work: Path) -> ComponentEntry:
    out = work / name
    out.mkdir()
    compiled: dict[str, Compiled] = {}
    for graph in entry.graphs:
        file = inside(made.path, graph.file)
        compiled[graph.file] = compile_graph(file, out / file.name, soc)
        _require_whole(name, compiled[graph.file], allowed)
    for replaced in {*compiled, *([entry.data] if entry.data else [])}:
        inside(made.path, replaced).unlink()
    fields = {file: _entered(made.path, name, each, soc) for file, each in compiled.items()}
    sizes = tuple(replace(size, **fields[size.file]) for size in entry.sizes)
    return replace(entry, **fields[entry.file], plan=summary(inside(made.path, entry.file), compiled[entry.file]), sizes=sizes)


def _entered(folder: Path, name: str, compiled: Compiled, soc: Soc) -> dict[str, Any]:
    """Moves a compiled graph into the package; returns what changes in its entry."""
    for file in (compiled.file, compiled.binary):
        file.rename(folder / name / file.name)
    binary = folder / name / compiled.binary.name
    graph = folder / name / compiled.file.name
    compiler = {PLUGIN: importlib.metadata.version(PLUGIN), "QNN": compiler_version(graph)}
    context = ContextEntry(soc.name, soc.model, soc.htp_arch, compiler, compiled.seconds, compiled.peak_mb, binary.stat().st_size)
    return {"sha256": package.hashed(graph).sha256, "data": f"{name}/{binary.name}", "context": context}


def _require_whole(name: str, compiled: Compiled, allowed: int) -> None:
    """Errors: CheckFailed where a graph falls into more than `allowed` partitions, or nodes of it fall out where one is allowed."""
    count = len(compiled.taken)
    if count > allowed or not count or (allowed == 1 and compiled.left):
        operator, nodes = max(compiled.left.items(), key=lambda entry: entry[1], default=("node", 0))
        raise CheckFailed(
            f"'{name}' falls into {count} partition{'s' * (count != 1)} on qnn, which takes {sum(compiled.taken)} of "
            f"{sum(compiled.taken) + sum(compiled.left.values())} nodes: QNN's compiler leaves above all {nodes} {operator} to the CPU. "
            f"Give --allow-partitions {max(2, count)} to take it so"
        )


def check_emulated(made: Package, oracle: Oracle, checkpoint: Checkpoint, check: str, step: Step = str) -> Package:
    """Runs every compiled component in the emulator and holds it against torch; writes what was measured into the manifest.

    Of a quick `check`, components that would take the emulator more than a minute are left out, and have no parity.
    Errors: CheckFailed below the limits of the package's precision.
    """
    limits = LIMITS[made.manifest.precision]
    components = dict(made.manifest.components)
    chosen = [name for name, entry in components.items() if entry.context and (check == "full" or worth_emulating(entry.macs))]
    found: dict[str, dict[str, float]] = {}
    with Sessions(made, provider("qnn"), low_memory=True) as sessions:
        for name in chosen:
            step(f"emulated: {name}")
            found[name] = check_component(sessions, name, *oracle.components[name], limits)
    for name, at_others in check_sizes(made, checkpoint, step, "qnn", limits, but=components.keys() - chosen).items():
        first = found[name]
        found[name] = {"snr_db": min(first["snr_db"], at_others["snr_db"]), "max_abs": max(first["max_abs"], at_others["max_abs"])}
    for name, parity in found.items():
        entry = components[name]
        assert entry.context is not None
        components[name] = replace(entry, context=replace(entry.context, parity=parity))
    package.finish(made.path, replace(made.manifest, components=components), made.manifest.files)
    return Package.open(made.path)
