"""What follows a target's pipeline where a package has less than float32."""

from __future__ import annotations

from graph_passes.passes.half import Measure, half
from graph_passes.passes.masks import bound_masks
from graph_passes.passes.names import NAME_NODES
from graph_passes.passes.quantize_static import quantize_static
from graph_passes.passes.quantize_weights import quantize_weights
from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.rules.compose_reshapes import COMPOSE_RESHAPES
from graph_passes.rules.fold_bias import FOLD_BIAS
from graph_passes.rules.multiply_flat import MULTIPLY_FLAT
from graph_passes.rules.remove_reshape import REMOVE_RESHAPE
from graph_passes.rules.scale_by_convolution import SCALE_BY_CONVOLUTION
from graph_passes.step import Pass

# The precisions of each target; of the others: fp32. Where one is missing, the target's provider has no kernels for it: NNAPI's takes
# float32 alone (and computes in half by itself where it is told to), CoreML's has no DequantizeLinear, and ours for the CPU have
# products of float32, bfloat16 and float16 numbers.
PRECISIONS: dict[str, tuple[str, ...]] = {
    "portable": ("fp32", "fp16", "w8", "w4", "a16w8"),
    "cpu": ("fp32", "bf16", "fp16"),
    "coreml": ("fp32", "fp16"),
    "qnn": ("fp16", "a16w8"),
    "webgpu": ("fp32", "fp16", "w8", "w4"),
    "cuda": ("fp32", "fp16"),
}
BITS = {"w8": 8, "w4": 4}
OWN_HALF = ("qnn", "cpu")  # whose compiler, or kernels, make float16 of float32 where it belongs
# A Snapdragon's NPU takes scales to each channel of convolutions and of products of two matrices (Gemm), and of nothing else
_FOR_HTP: tuple[Pass, ...] = (
    MULTIPLY_FLAT.as_pass(),
    FOLD_BIAS.as_pass(),
    COMPOSE_RESHAPES.as_pass(),
    REMOVE_RESHAPE.as_pass(),
    SCALE_BY_CONVOLUTION.as_pass(),
    REMOVE_UNUSED,
)
FOUR_BIT_CONVOLUTIONS = ("portable",)  # WebGPU's provider has no com.microsoft.DequantizeLinear


def stored_bits(precision: str, target: str) -> float:
    """What a weight takes in a file, scales included; where the target cpu transforms some, more."""
    return {"w8": 8.5, "w4": 4.5, "a16w8": 8.1}.get(precision, 16.0 if precision == "fp16" and target not in OWN_HALF else 32.0)


def measures(precision: str, target: str) -> bool:
    """Whether a pass asks for the ranges of a graph's values."""
    return precision == "a16w8" or (precision == "fp16" and target not in OWN_HALF)


def lowered(precision: str, target: str, measure: Measure | None) -> tuple[Pass, ...]:
    """The passes of a precision. `measure` tells the ranges of a graph's values, where a choice is made by them."""
    if precision == "a16w8":
        first = _FOR_HTP if target == "qnn" else ()
        return (*first, bound_masks(-100.0), REMOVE_UNUSED, quantize_static(measure, target == "qnn"), REMOVE_UNUSED, NAME_NODES)
    if precision == "fp16" and target not in OWN_HALF:
        return (bound_masks(-1e4), REMOVE_UNUSED, half(measure), REMOVE_UNUSED, NAME_NODES)
    if precision in BITS:
        return (quantize_weights(BITS[precision], target in FOUR_BIT_CONVOLUTIONS), REMOVE_UNUSED, NAME_NODES)
    return ()
