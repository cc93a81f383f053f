"""The least and the largest of every value of a graph, over inputs that a denoising really has: what a precision is chosen by.

Trajectories of diffusers' pipeline give the inputs of every component; ONNX Runtime gives the ranges of the graph that is to be
converted, in segments: a segment's weights are in memory while all inputs go through it, and are on no disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

from export.component import Component
from export.reference import FEW_STEPS, FULL_STEPS, QUICK_SIDE, QUICK_STEPS, beginning, diffusers_pipeline, seeded_inputs, walk
from export.weights import Checkpoint
from graph_passes.contrib.expand import expand
from graph_passes.extract import extracted
from graph_passes.passes.shapes import without_weights
from graph_passes.values import is_constant
from runtime import scenes

Arrays = dict[str, np.ndarray]
Ranges = dict[str, tuple[float, float]]
# None of them is what the check draws: ranges must hold for other prompts, too
PROMPTS = ("a mountain lake at sunrise", "a portrait of an old fisherman, oil on canvas", "a red bicycle against a brick wall", "")
SAMPLES = 8  # of each component, evenly over the steps of all trajectories
SEED = (1,)  # of seeded inputs: the check's own must be new to a package
SEGMENT_BYTES = 256 << 20  # of weights that are in memory at once


# --- the inputs ----------------------------------------------------------------------------------------------------------------------


def record(checkpoint: Checkpoint, pipeline: dict[str, Any], quick: bool, work: Path, step: Callable[[str], object] = str) -> None:
    """Takes trajectories in torch and writes the inputs that the components had to `work`/samples/<component>.npz.

    `quick`: two steps to one prompt, at 512 pixels at most where the package is dynamic; else as many as the package takes by itself, to
    all prompts.
    """
    height, width = pipeline["height"], pipeline["width"]
    if quick and pipeline["dynamic"]:
        height, width = min(height, QUICK_SIDE), min(width, QUICK_SIDE)
    steps = QUICK_STEPS if quick else min(FULL_STEPS, max(pipeline["steps"], FEW_STEPS))
    seen: dict[str, list[Arrays]] = {}
    for seed, prompt in enumerate(prompts(checkpoint.alias)[: 1 if quick else None], start=1):
        step(f"calibration: {prompt}")
        taken = walk(checkpoint, prompt, steps, pipeline["guidance"], height, width, seed)
        running = diffusers_pipeline(checkpoint, taken, work)
        _listen(running, seen)
        generators = [torch.Generator().manual_seed(seed) for _ in taken.prompts]
        with torch.no_grad():
            running(list(taken.prompts), num_inference_steps=steps, guidance_scale=taken.guidance, generator=generators, output_type="pt",
                    **beginning(taken))
    (work / "samples").mkdir()
    for component, rows in seen.items():
        chosen = [rows[index] for index in sorted(set(np.linspace(0, len(rows) - 1, SAMPLES).round().astype(int)))]
        np.savez(work / "samples" / f"{component}.npz", **{name: np.stack([row[name] for row in chosen]) for name in chosen[0]})  # type: ignore[arg-type]


def prompts(alias: str) -> tuple[str, ...]:
    """What is drawn: for the embedded model captions of its language, and not those of its score."""
    if alias != "tiny":
        return PROMPTS
    known = [scene.caption for scene in scenes.scenes() if not scenes.is_held_out(scene)]
    return tuple(known[:: len(known) // 3])


def _listen(pipeline: Any, seen: dict[str, list[Arrays]]) -> None:
    """Has the inputs of a pipeline's modules recorded, picture by picture, under the names that our graphs have for them."""

    def keep(component: str, **inputs: Any) -> None:
        arrays = {name: value.detach().numpy() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        count = max(len(array) for array in arrays.values() if array.ndim)
        seen.setdefault(component, []).extend(
            {name: np.array(array[row : row + 1] if array.ndim else array) for name, array in arrays.items()} for row in range(count)
        )

    def unet(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        keep("unet", sample=given[0], timestep=torch.as_tensor(given[1]).float(), encoder_hidden_states=named["encoder_hidden_states"],
             timestep_cond=named.get("timestep_cond"), **(named.get("added_cond_kwargs") or {}))

    pipeline.unet.register_forward_pre_hook(unet, with_kwargs=True)
    for name in ("text_encoder", "text_encoder_2"):
        if (encoder := getattr(pipeline, name, None)) is not None:
            encoder.register_forward_pre_hook(lambda _, given, component=name: keep(component, input_ids=given[0]))
    vae = pipeline.vae
    entrance = vae.decoder if vae.post_quant_conv is None else vae.post_quant_conv
    entrance.register_forward_pre_hook(lambda _, given: keep("vae_decoder", latent_sample=given[0]))
    # what it draws, it could be asked to change
    vae.decoder.register_forward_hook(lambda _, given, picture: keep("vae_encoder", sample=picture.clamp(-1, 1)))


def samples(work: Path, component: Component, height: int, width: int, factor: int) -> list[Arrays]:
    """The recorded inputs of a component, and seeded ones, which lie further out: the check feeds their like, and not these."""
    path = work / "samples" / f"{component.name}.npz"
    seeded = seeded_inputs(component, height, width, factor, seed=SEED)
    if not path.is_file():  # no trajectory runs it
        return [seeded]
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in component.example_inputs}
    recorded = [{name: np.asarray(array[index]) for name, array in arrays.items()} for index in range(len(next(iter(arrays.values()))))]
    return [*recorded, seeded]


# --- the ranges ----------------------------------------------------------------------------------------------------------------------


def value_ranges(model: ir.Model, inputs: Sequence[Arrays]) -> Ranges:
    """(least, largest) of every float32 value of a graph by its name, constants and the graph's inputs included, over all `inputs`.

    Inputs of one picture are repeated where the graph has a fixed batch. Memory: the weights of a segment, and what crosses its border.
    """
    found: Ranges = {}
    live = [{value.name: _repeated(value, arrays[str(value.name)]) for value in model.graph.inputs} for arrays in inputs]
    for arrays in live:
        for name, array in arrays.items():
            _note(found, str(name), array)
    for nodes in _segments(model.graph):
        _run_segment(model, nodes, live, found)
    return found


def _repeated(value: ir.Value, array: np.ndarray) -> np.ndarray:
    batch = value.shape[0] if value.shape is not None and len(value.shape) else None
    return np.repeat(array, batch, axis=0) if isinstance(batch, int) and array.ndim and len(array) == 1 else array


def _note(found: Ranges, name: str, array: np.ndarray) -> None:
    if array.dtype == np.float32 and array.size:
        low, high = found.get(name, (np.inf, -np.inf))
        found[name] = min(low, float(array.min())), max(high, float(array.max()))


def _segments(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    """The nodes in order, in pieces of SEGMENT_BYTES of weights."""
    nodes: list[ir.Node] = []
    held = 0
    for node in graph:
        weights = sum(value.const_value.nbytes for value in node.inputs if is_constant(value) and value.const_value is not None)
        if nodes and held + weights > SEGMENT_BYTES:
            yield nodes
            nodes, held = [], 0
        nodes.append(node)
        held += weights
    yield nodes


def _run_segment(model: ir.Model, nodes: list[ir.Node], live: list[dict[Any, np.ndarray]], found: Ranges) -> None:
    """Sends all inputs through a segment; leaves in `live` what later segments need, and in `found` what was measured."""
    inside = set(nodes)
    made = [value for node in nodes for value in node.outputs if value.name]
    crossing = [value for value in made if any(use.node not in inside for use in value.uses())]
    part = extracted(model, nodes, crossing, "segment")
    watched = [value for node in part.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT and value.name]
    for value in watched:
        producer = value.producer()
        assert producer is not None
        for op_type in ("ReduceMin", "ReduceMax"):
            node = ir.node(op_type, [value], {"keepdims": 0}, name=f"{value.name}/{op_type}")
            node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = node.name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            part.graph.insert_after(producer, node)
            part.graph.outputs.append(node.outputs[0])
    session, weights = _session(part)
    for name, array in weights.items():
        _note(found, name, array)
    needed = {value.name for value in part.graph.inputs}
    reductions = [output.name for output in session.get_outputs()][len(crossing):]
    kept = [str(value.name) for value in crossing]
    last = _values_after(model, nodes)
    for arrays in live:
        results = session.run(kept + reductions, {name: arrays[name] for name in needed})
        arrays.update(zip(kept, results, strict=False))
        for value, (low, high) in zip(watched, zip(*[iter(results[len(kept):])] * 2, strict=True), strict=True):
            _note(found, str(value.name), np.stack([low, high]))
        for name in [name for name in arrays if name not in last]:
            del arrays[name]


def _values_after(model: ir.Model, nodes: list[ir.Node]) -> set[str | None]:
    """The names of what the nodes after these read."""
    after: set[str | None] = set()
    for node in reversed(model.graph):
        if node is nodes[-1]:
            break
        after |= {value.name for value in node.inputs if value is not None}
    return after


def _session(part: ir.Model) -> tuple[ort.InferenceSession, Arrays]:
    """A session whose large weights are the arrays themselves, and the float weights."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # as they stand: a value is looked at and let go
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    tensors = {str(value.name): value.const_value for value in part.graph.initializers.values() if value.const_value is not None}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    large = {name: array for name, array in arrays.items() if array.nbytes > 1 << 10}
    options.add_external_initializers(list(large), [ort.OrtValue.ortvalue_from_numpy(array) for array in large.values()])
    return ort.InferenceSession(without_weights(part).SerializeToString(), options, providers=["CPUExecutionProvider"]), arrays


@dataclass
class Measured:
    """`graph_passes`' measure of one component: taken once, because its graphs for other sizes have values of the same names."""

    inputs: list[Arrays]
    ranges: Ranges | None = None

    def __call__(self, model: ir.Model) -> Ranges:
        if self.ranges is None:
            runnable = model.clone()
            expand(runnable)
            self.ranges = value_ranges(runnable, self.inputs)
        return self.ranges
