"""Providers that leave to the CPU's what they do not take: XNNPACK gets every convolution and linear layer, WebGPU the whole U-Net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
from graphs import ops, run_in_runtime
from networks import NETWORKS

from graph_passes.files import load
from graph_passes.pipelines import for_target
from graph_passes.plan import plan
from graph_passes.step import run
from graph_passes.values import is_constant
from runtime.compare import snr_db

ATTENTIONS, LAYERS = 8, 48  # of the small U-Net: two to each of its transformers; four products to each attention, two to each GEGLU


def lowered(file: Path, target: str, shapes: dict[str, tuple[int, ...]] | None) -> tuple[ir.Model, float]:
    """The U-Net for a target, and how far it is from what it was, in dB."""
    inputs = {name: value.numpy() for name, value in NETWORKS["unet"]().inputs.items()}
    model = load(file)
    (expected,) = run_in_runtime(model, inputs)
    run(model, for_target(target, shapes=shapes))
    (got,) = run_in_runtime(model, inputs)
    return model, snr_db(expected, got)


def test_xnnpack_takes_every_convolution_and_linear_layer(exported: Callable[..., Path]) -> None:
    shapes = {name: tuple(value.shape) for name, value in NETWORKS["unet"]().inputs.items()}
    model, decibel = lowered(exported("unet", "dynamo"), "xnnpack", shapes)
    assert decibel >= 90
    made = plan(model, "xnnpack")
    refused = {refusal.op_type for refusal in made.refusals}
    assert not refused & {"Conv", "MatMul", "Gemm"}
    gemms = [node for node in model.graph if node.op_type == "Gemm"]
    assert len(gemms) >= LAYERS
    assert all(len(node.inputs) == 3 and is_constant(node.inputs[2]) for node in gemms)  # the provider dies of one without a bias
    # what is left to the CPU is attention: the rest of the work is taken
    kept = sum(count for op_type, count in ops(model).items() if op_type == "FlashAttention")
    assert (kept, made.crossing_bytes) == (ATTENTIONS, 0)
    assert made.macs[0] / made.macs[1] > 0.85
    assert {identifier[1] for identifier in model.functions} >= {"FlashAttention", "GroupNormSilu", "Geglu"}


def test_webgpu_keeps_no_scores_and_takes_free_axes(exported: Callable[..., Path]) -> None:
    model, decibel = lowered(exported("unet", "dynamo"), "webgpu", None)
    assert decibel >= 90
    counts = ops(model)
    assert (counts["MultiHeadAttention"], counts.get("Softmax", 0)) == (ATTENTIONS, 0)
    assert counts["SkipLayerNormalization"] > 0
    made = plan(model, "webgpu")
    # the one input of integers, the timestep, is turned into a float there; sizes of free axes are computed on the CPU
    assert made.taken / made.nodes > 0.9
    assert {refusal.op_type for refusal in made.refusals} <= {"Expand", "Mul", "Div", "Slice", "Squeeze", "Unsqueeze"}
