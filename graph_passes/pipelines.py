"""The pipelines: for each target one explicit tuple of passes, in order."""

from __future__ import annotations

from collections.abc import Mapping

from graph_passes.contrib import bias_add, bias_split_gelu
from graph_passes.contrib.attention import FUSE_MULTI_HEAD_ATTENTION
from graph_passes.contrib.bias_add import fuse_bias_add
from graph_passes.contrib.bias_split_gelu import fuse_bias_split_gelu
from graph_passes.contrib.channels_last import CHANNELS_LAST
from graph_passes.contrib.group_norm import FUSE_CONTRIB_GROUP_NORM
from graph_passes.contrib.packed_attention import PACK_ATTENTION
from graph_passes.contrib.skip_group_norm import FUSE_SKIP_GROUP_NORM
from graph_passes.contrib.skip_layer_norm import FUSE_SKIP_LAYER_NORM
from graph_passes.costs import table
from graph_passes.errors import GraphError
from graph_passes.ops.attention import fuse_flash_attention
from graph_passes.ops.gelu import FUSE_GELU
from graph_passes.ops.group_norm import FUSE_GROUP_NORM
from graph_passes.ops.linear import fuse_linear, fuse_pointwise
from graph_passes.passes.attach_bodies import ATTACH_BODIES
from graph_passes.passes.constants import FOLD_CONSTANTS, LIFT_CONSTANTS
from graph_passes.passes.duplicates import MERGE_INITIALIZERS, MERGE_NODES
from graph_passes.passes.functions import INLINE_FUNCTIONS
from graph_passes.passes.half import Measure
from graph_passes.passes.metadata import CLEAR_METADATA
from graph_passes.passes.names import NAME_NODES
from graph_passes.passes.shapes import INFER_SHAPES, SHARE_SIZES
from graph_passes.passes.simplify import SIMPLIFY
from graph_passes.passes.static_shapes import static_shapes
from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.passes.weights import FOLD_WEIGHTS
from graph_passes.passes.winograd import Policy, winograd
from graph_passes.precision import PRECISIONS, lowered
from graph_passes.rules.add_zero_bias import ADD_ZERO_BIAS
from graph_passes.rules.approximate_gelu import APPROXIMATE_GELU
from graph_passes.rules.compose_casts import COMPOSE_CASTS
from graph_passes.rules.compose_reshapes import COMPOSE_RESHAPES
from graph_passes.rules.compose_transposes import COMPOSE_TRANSPOSES
from graph_passes.rules.compose_unsqueezes import COMPOSE_UNSQUEEZES
from graph_passes.rules.einsum_as_product import EINSUM_AS_PRODUCT
from graph_passes.rules.enlarge_by_factors import ENLARGE_BY_FACTORS
from graph_passes.rules.fix_cast_target import FIX_CAST_TARGET
from graph_passes.rules.fix_reshape_target import FIX_RESHAPE_TARGET
from graph_passes.rules.fold_bias import FOLD_BIAS
from graph_passes.rules.fold_pad import FOLD_PAD
from graph_passes.rules.lower_group_norm import LOWER_GROUP_NORM
from graph_passes.rules.lower_instance_norm import LOWER_INSTANCE_NORM
from graph_passes.rules.lower_layer_norm import LOWER_LAYER_NORM
from graph_passes.rules.multiply_flat import MULTIPLY_FLAT
from graph_passes.rules.multiply_tokens import MULTIPLY_TOKENS
from graph_passes.rules.pool_by_product import POOL_BY_PRODUCT
from graph_passes.rules.remove_cast import REMOVE_CAST
from graph_passes.rules.remove_concat import REMOVE_CONCAT
from graph_passes.rules.remove_dropout import REMOVE_DROPOUT
from graph_passes.rules.remove_expand import REMOVE_EXPAND
from graph_passes.rules.remove_identity import REMOVE_IDENTITY
from graph_passes.rules.remove_nan_guard import REMOVE_NAN_GUARD
from graph_passes.rules.remove_neutral_operand import REMOVE_NEUTRAL_OPERAND
from graph_passes.rules.remove_reshape import REMOVE_RESHAPE
from graph_passes.rules.remove_slice import REMOVE_SLICE
from graph_passes.rules.remove_transpose import REMOVE_TRANSPOSE
from graph_passes.rules.sink_expand import SINK_EXPAND
from graph_passes.rules.slice_concat import SLICE_CONCAT
from graph_passes.rules.split_sequence import SPLIT_SEQUENCE
from graph_passes.rules.unfold_groups import UNFOLD_GROUPS
from graph_passes.rules.unfold_transpose import UNFOLD_TRANSPOSE
from graph_passes.rules.unfold_winograd import unfold_winograd
from graph_passes.step import Pass

KNOWN: tuple[Pass, ...] = (INFER_SHAPES, SHARE_SIZES, FOLD_CONSTANTS)

# what rewrites leave behind
_TIDY: tuple[Pass, ...] = (
    REMOVE_UNUSED,
    INFER_SHAPES,
    SHARE_SIZES,
    MERGE_INITIALIZERS,
    MERGE_NODES,
    REMOVE_UNUSED,
    NAME_NODES,
    CLEAR_METADATA,
)

PORTABLE: tuple[Pass, ...] = (
    # one form for what exporters write in several
    INLINE_FUNCTIONS,
    LIFT_CONSTANTS,
    REMOVE_IDENTITY.as_pass(),
    REMOVE_DROPOUT.as_pass(),
    EINSUM_AS_PRODUCT.as_pass(),
    INFER_SHAPES,
    FIX_CAST_TARGET.as_pass(),
    COMPOSE_CASTS.as_pass(),
    REMOVE_CAST.as_pass(),
    # what is known before the graph runs: weights stay on disk, and what was found once lets the second round find more
    MERGE_NODES,
    FOLD_WEIGHTS,
    *KNOWN,
    *KNOWN,
    MERGE_INITIALIZERS,
    MERGE_NODES,
    FOLD_WEIGHTS,
    # nothing but a new view of the same numbers
    UNFOLD_TRANSPOSE.as_pass(),
    COMPOSE_TRANSPOSES.as_pass(),
    REMOVE_TRANSPOSE.as_pass(),
    FIX_RESHAPE_TARGET.as_pass(),
    REMOVE_RESHAPE.as_pass(),
    COMPOSE_RESHAPES.as_pass(),
    COMPOSE_UNSQUEEZES.as_pass(),
    REMOVE_SLICE.as_pass(),
    SLICE_CONCAT.as_pass(),
    REMOVE_CONCAT.as_pass(),
    SPLIT_SEQUENCE.as_pass(),
    FOLD_PAD.as_pass(),
    # arithmetic that changes nothing
    REMOVE_NEUTRAL_OPERAND.as_pass(),
    REMOVE_NAN_GUARD.as_pass(),
    SINK_EXPAND.as_pass(),
    REMOVE_EXPAND.as_pass(),
    *_TIDY,
)



def _fuse(precision: str) -> tuple[Pass, ...]:
    """Custom ops with native kernels, whose products have operands of that precision: all but those with weights."""
    return (FUSE_GROUP_NORM, FUSE_GELU, fuse_flash_attention(precision), MULTIPLY_TOKENS.as_pass(), REMOVE_UNUSED)


def _fuse_layers(precision: str) -> tuple[Pass, ...]:
    """Linear layers, which take GEGLU in and leave to attention what is its own."""
    return (fuse_linear(precision), fuse_pointwise(precision))


# optimizers inline functions, so the bodies come last
_ATTACH: tuple[Pass, ...] = (NAME_NODES, ATTACH_BODIES)
CPU: tuple[Pass, ...] = (*PORTABLE, *_fuse("fp32"), *_fuse_layers("fp32"), *_ATTACH)

# linear layers are products of two matrices, and so found before their weights are turned for MatMul
_LINEAR: tuple[Pass, ...] = (INLINE_FUNCTIONS, LIFT_CONSTANTS, REMOVE_IDENTITY.as_pass(), INFER_SHAPES, MULTIPLY_FLAT.as_pass())
_LEFT: tuple[Pass, ...] = (
    FOLD_WEIGHTS,
    COMPOSE_RESHAPES.as_pass(),
    REMOVE_RESHAPE.as_pass(),
    *_TIDY,
)

# static shapes, at most four axes, no norms, no erf; what takes integers is moved to the host by passes.host
NNAPI: tuple[Pass, ...] = (
    *_LINEAR,
    *PORTABLE,
    MULTIPLY_FLAT.as_pass(),
    FOLD_BIAS.as_pass(),
    LOWER_GROUP_NORM.as_pass(),
    UNFOLD_GROUPS.as_pass(),
    LOWER_INSTANCE_NORM.as_pass(),
    LOWER_LAYER_NORM.as_pass(),
    APPROXIMATE_GELU.as_pass(),
    ENLARGE_BY_FACTORS.as_pass(),
    POOL_BY_PRODUCT.as_pass(),
    *_LEFT,
)

# MLProgram has norms and GELU, and no dimension above 16,384
COREML: tuple[Pass, ...] = (
    *_LINEAR,
    *PORTABLE,
    MULTIPLY_FLAT.as_pass(),
    FOLD_BIAS.as_pass(),
    LOWER_GROUP_NORM.as_pass(),
    UNFOLD_GROUPS.as_pass(),
    ENLARGE_BY_FACTORS.as_pass(),
    POOL_BY_PRODUCT.as_pass(),
    *_LEFT,
)

# QNN's compiler takes norms, GELU and attention as they are: the smallest graph that it takes whole (docs/qnn.md)
QNN: tuple[Pass, ...] = (*PORTABLE, POOL_BY_PRODUCT.as_pass(), *_LEFT)

# what the CUDA provider has of ONNX Runtime's own operators, with the channels last throughout
CUDA: tuple[Pass, ...] = (
    *PORTABLE,
    FUSE_CONTRIB_GROUP_NORM,
    FUSE_MULTI_HEAD_ATTENTION,
    PACK_ATTENTION,
    fuse_bias_split_gelu(bias_split_gelu.CUDA_WIDTHS),
    FUSE_SKIP_LAYER_NORM,
    fuse_bias_add(bias_add.CUDA_WIDTHS),
    CHANNELS_LAST,
    FUSE_SKIP_GROUP_NORM,
    REMOVE_UNUSED,
    MERGE_INITIALIZERS,
    MERGE_NODES,
    REMOVE_UNUSED,
    NAME_NODES,
)

# WebGPU's provider has the norms under their standard names, and attention as one operator, whose scores are in no buffer: written out,
# they are larger than what many devices bind. The CPU's provider has both operators too, and a browser without WebGPU falls back on it:
# BiasSplitGelu and BiasAdd, which it has not, would save a pass over activations here and there, and the fallback with it.
WEBGPU: tuple[Pass, ...] = (*PORTABLE, FUSE_MULTI_HEAD_ATTENTION, FUSE_SKIP_LAYER_NORM, REMOVE_UNUSED, NAME_NODES)

# XNNPACK's provider takes convolutions, products of two matrices and bilinear Resize, and leaves the rest to the CPU's beside it, in the
# same memory: there the norms, GELU and attention are our kernels
XNNPACK: tuple[Pass, ...] = (
    *PORTABLE,
    *_fuse("fp32"),
    MULTIPLY_FLAT.as_pass(),
    FOLD_BIAS.as_pass(),
    ADD_ZERO_BIAS.as_pass(),
    COMPOSE_RESHAPES.as_pass(),
    REMOVE_RESHAPE.as_pass(),
    REMOVE_UNUSED,
    MERGE_INITIALIZERS,
    MERGE_NODES,
    REMOVE_UNUSED,
    CLEAR_METADATA,
    *_ATTACH,
)

TARGETS: dict[str, tuple[Pass, ...]] = {
    "portable": PORTABLE,
    "cpu": CPU,
    "nnapi": NNAPI,
    "coreml": COREML,
    "cuda": CUDA,
    "qnn": QNN,
    "webgpu": WEBGPU,
    "xnnpack": XNNPACK,
}
CONVOLVE_IN_HARDWARE = ("nnapi", "coreml", "qnn")


def for_target(
    target: str,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    simplify: bool = False,
    precision: str = "fp32",
    at: Mapping[str, tuple[int, ...]] | None = None,
    budget: float | None = None,
    costs: str | None = None,
    winograd_as: str | None = None,
    measure: Measure | None = None,
) -> tuple[Pass, ...]:
    """The passes for a target. With `shapes` ({input name: shape}) the graph becomes static first; with `simplify` onnxsim has a turn.

    `precision`: the least that the operands of products may have; `measure` tells it the ranges of a graph's values.
    For the target cpu, layers are weighed at the input shapes `at` where the graph's own are free, by the costs of a class of machines or
    a file (None: of this machine), and the weights may grow to `budget` times the plain ones (None: as far as it takes for the least time).
    `winograd_as`: "none", or "subgraph" for standard operators in the place of the target cpu's kernels (None).
    Errors: GraphError for a target without a pipeline, what a target does not have, and costs that are not there.
    """
    if target not in TARGETS:
        raise GraphError(f"There is no pipeline for the target {target!r}. There is one for {', '.join(TARGETS)}.")
    if precision not in (known := PRECISIONS.get(target, ("fp32",))):
        raise GraphError(f"The target {target!r} does not have the precision {precision!r}: it has {', '.join(known)}.")
    if budget is not None and budget < 1:
        raise GraphError(f"A memory budget of {budget:g} is less than the plain weights: give 1 or more.")
    first = (INLINE_FUNCTIONS, LIFT_CONSTANTS, static_shapes(shapes)) if shapes else ()
    # onnxsim knows nothing of custom ops, and what it makes is cleaned like any exporter's graph
    second = (*PORTABLE, SIMPLIFY) if simplify else ()
    passes = TARGETS[target]
    if winograd_as not in (None, "none", "subgraph"):
        raise GraphError(f"Winograd's convolutions cannot be written as {winograd_as!r}: there is subgraph, and none.")
    if winograd_as == "subgraph" and target in CONVOLVE_IN_HARDWARE:
        raise GraphError(f"The target {target!r} convolves in hardware, and Winograd's convolutions would only slow it down.")
    if winograd_as is not None:
        unfolded = (unfold_winograd(4), INFER_SHAPES) if winograd_as == "subgraph" else ()
        last = (*_fuse(precision), *_fuse_layers(precision), *_ATTACH) if target == "cpu" else (NAME_NODES,)
        passes = (*(PORTABLE if target == "cpu" else passes), *unfolded, *last)
    elif target == "cpu":
        policy = Policy(table(costs), precision, budget, at or {})
        passes = (*PORTABLE, winograd(policy), *_fuse(precision), *_fuse_layers(precision), *_ATTACH)
    return (*first, *second, *passes, *lowered(precision, target, measure))
