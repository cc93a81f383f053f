"""The heads of an attention, folded into its batch: [batch, heads, tokens, dim] as [batch * heads, tokens, dim], and back.

diffusers' AttnProcessor multiplies tensors of three axes, so that exports of it hold a Reshape in front of and behind every product.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.sizes import Element, reshape_target, size_elements
from graph_passes.values import is_standard, operands, producer


def before_folding(value: ir.Value) -> ir.Value | None:
    """[batch, heads, tokens, dim] that a Reshape makes `value` of, [batch * heads, tokens, dim]; None where none is known to."""
    reshape = producer(value, "Reshape")
    if reshape is None:
        return None
    source = operands(reshape)[0]
    return source if _folds(size_elements(source), reshape_target(reshape)) else None


def after_unfolding(value: ir.Value) -> ir.Value | None:
    """[batch, heads, tokens, dim] that one Reshape makes of `value`, [batch * heads, tokens, dim]; None where none is known to.

    Nothing else may read `value` but for its sizes, as that Reshape does itself: its batch is the first of them over the heads.
    """
    readers = [use.node for use in value.uses() if not is_standard(use.node, "Shape")]
    if len(readers) != 1 or not is_standard(readers[0], "Reshape") or value.is_graph_output():
        return None
    (reshape,) = readers
    return reshape.outputs[0] if _folds(reshape_target(reshape), size_elements(value)) else None


def _folds(apart: tuple[Element, ...] | None, folded: tuple[Element, ...] | None) -> bool:
    """Whether the last two axes are the same, so that the first is what the first two were."""
    return apart is not None and folded is not None and len(apart) == 4 and len(folded) == 3 and apart[2:] == folded[1:]
