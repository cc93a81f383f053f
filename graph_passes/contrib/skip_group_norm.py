"""GroupNorm(x + skip) -> com.microsoft.SkipGroupNorm(x, gamma, beta, skip, bias), which gives the sum as well; of NHWC alone.

`skip` is a residual of the shape of x, or [batch, 1, 1, channels], as a time embedding is. A bias that a linear layer adds to x before is
taken in, through the Reshape that makes a picture of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graph_passes.contrib.nodes import bias_of, insert, is_contrib
from graph_passes.rule import Refused, adopt, emit, fusion, replace
from graph_passes.values import dimensions, integer, is_constant, only_user, operands, producer, same_shape


@dataclass(frozen=True)
class _Site:
    """The sum that is normalized and its operands."""

    add: ir.Node
    x: ir.Value
    skip: ir.Value


def _is_candidate(node: ir.Node) -> bool:
    add = producer(node.inputs[0], "Add") if is_contrib(node, "GroupNorm") and integer(node, "channels_last", 1) else None
    return add is not None and not any(map(is_constant, add.inputs))


def _site(node: ir.Node) -> _Site:
    add = producer(node.inputs[0], "Add")
    assert add is not None
    if add.outputs[0].is_graph_output():
        raise Refused("the sum is an output of the graph")
    first, second = operands(add)
    for x, skip in ((first, second), (second, first)):
        shape = dimensions(x) or ()
        if len(shape) == 4 and None not in shape and dimensions(skip) in (shape, (shape[0], 1, 1, shape[3])) and shape[1:3] != (1, 1):
            return _Site(add, x, skip)
    raise Refused("the operands of the sum are not known to be of one shape, or one of them [batch, 1, 1, channels]")


def _fuse(site: _Site, node: ir.Node) -> None:
    x, skip, bias = site.x, site.skip, None
    for value, other in ((x, skip), (skip, x)):
        parts = _biased(value, site.add)
        if parts is not None and same_shape(value, other):
            view, product, bias = parts
            x, skip = emit(view, "Reshape", [product, view.inputs[1]], dict(view.attributes)), other
            adopt(x, value)
            break
    inputs = [x, *node.inputs[1:3], skip, *([bias] if bias is not None else [])]
    alone = len(site.add.outputs[0].uses()) == 1
    fused = insert(site.add, "SkipGroupNorm", inputs, dict(node.attributes), node.name, outputs=1 if alone else 2)
    for value in fused.outputs:
        adopt(value, node.outputs[0])
    replace(node, fused.outputs[0])
    if not alone:
        replace(site.add, fused.outputs[1])


def _biased(value: ir.Value, add: ir.Node) -> tuple[ir.Node, ir.Value, ir.Value] | None:
    """(view, product, bias) where `value` is made of a linear layer's tokens, for `add` alone."""
    view = producer(value, "Reshape")
    layer = view.inputs[0] if view is not None else None
    if view is None or layer is None or only_user(value, "Add") is not add or len(layer.uses()) > 1:
        return None
    channels = (dimensions(value) or (None,))[-1]
    parts = bias_of(layer.producer(), channels) if isinstance(channels, int) else None
    return None if parts is None or producer(parts[0], "MatMul") is None else (view, *parts)


FUSE_SKIP_GROUP_NORM = fusion("fuse skip and group norm", _is_candidate, _site, _fuse)
