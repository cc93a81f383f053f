"""The pipelines: for each target one explicit tuple of passes, in order."""

from __future__ import annotations

from collections.abc import Mapping

from graph_passes.errors import GraphError
from graph_passes.ops.group_norm import FUSE_GROUP_NORM
from graph_passes.passes.attach_bodies import ATTACH_BODIES
from graph_passes.passes.constants import FOLD_CONSTANTS, LIFT_CONSTANTS
from graph_passes.passes.duplicates import MERGE_INITIALIZERS, MERGE_NODES
from graph_passes.passes.functions import INLINE_FUNCTIONS
from graph_passes.passes.metadata import CLEAR_METADATA
from graph_passes.passes.names import NAME_NODES
from graph_passes.passes.shapes import INFER_SHAPES, SHARE_SIZES
from graph_passes.passes.simplify import SIMPLIFY
from graph_passes.passes.static_shapes import static_shapes
from graph_passes.passes.unused import REMOVE_UNUSED
from graph_passes.passes.weights import FOLD_WEIGHTS
from graph_passes.rules.compose_casts import COMPOSE_CASTS
from graph_passes.rules.compose_reshapes import COMPOSE_RESHAPES
from graph_passes.rules.compose_transposes import COMPOSE_TRANSPOSES
from graph_passes.rules.compose_unsqueezes import COMPOSE_UNSQUEEZES
from graph_passes.rules.fix_cast_target import FIX_CAST_TARGET
from graph_passes.rules.fix_reshape_target import FIX_RESHAPE_TARGET
from graph_passes.rules.fold_pad import FOLD_PAD
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
from graph_passes.rules.unfold_transpose import UNFOLD_TRANSPOSE
from graph_passes.step import Pass

KNOWN: tuple[Pass, ...] = (INFER_SHAPES, SHARE_SIZES, FOLD_CONSTANTS)

PORTABLE: tuple[Pass, ...] = (
    # one form for what exporters write in several
    INLINE_FUNCTIONS,
    LIFT_CONSTANTS,
    REMOVE_IDENTITY.as_pass(),
    REMOVE_DROPOUT.as_pass(),
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
    # what the rewrites left
    REMOVE_UNUSED,
    INFER_SHAPES,
    SHARE_SIZES,
    MERGE_INITIALIZERS,
    MERGE_NODES,
    REMOVE_UNUSED,
    NAME_NODES,
    CLEAR_METADATA,
)

# custom ops with native kernels; optimizers inline functions, so the bodies come last
CPU: tuple[Pass, ...] = (*PORTABLE, FUSE_GROUP_NORM, NAME_NODES, ATTACH_BODIES)

TARGETS: dict[str, tuple[Pass, ...]] = {"portable": PORTABLE, "cpu": CPU}


def for_target(target: str, *, shapes: Mapping[str, tuple[int, ...]] | None = None, simplify: bool = False) -> tuple[Pass, ...]:
    """The passes for a target. With `shapes` ({input name: shape}) the graph becomes static first; with `simplify` onnxsim has a turn.

    Errors: GraphError for a target without a pipeline.
    """
    if target not in TARGETS:
        raise GraphError(f"There is no pipeline for the target {target!r}. There is one for {' and '.join(TARGETS)}.")
    first = (INLINE_FUNCTIONS, LIFT_CONSTANTS, static_shapes(shapes)) if shapes else ()
    # onnxsim knows nothing of custom ops, and what it makes is cleaned like any exporter's graph
    second = (*PORTABLE, SIMPLIFY) if simplify else ()
    return (*first, *second, *TARGETS[target])
