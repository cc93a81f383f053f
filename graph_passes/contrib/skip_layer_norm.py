"""LayerNormalization(x + skip) -> com.microsoft.SkipLayerNormalization(x, skip), which gives the sum as well; a bias of x is taken in.

ONNX Runtime fuses some of these when it loads a graph; here they are in the file, before BiasAdd takes their sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graph_passes.contrib.nodes import TYPES, bias_of, insert
from graph_passes.rule import Refused, adopt, fusion, replace
from graph_passes.values import dimensions, integer, is_constant, is_standard, only_user, operands, producer, same_shape


@dataclass(frozen=True)
class _Site:
    """The operands of the sum that is normalized, and the bias of the first of them, if it has one."""

    add: ir.Node
    x: ir.Value
    skip: ir.Value
    bias: ir.Value | None


def _is_candidate(node: ir.Node) -> bool:
    add = producer(node.inputs[0], "Add") if is_standard(node, "LayerNormalization") else None
    return add is not None and not any(map(is_constant, add.inputs))


def _site(node: ir.Node) -> _Site:
    add = producer(node.inputs[0], "Add")
    assert add is not None
    x, skip = operands(add)
    shape = dimensions(x) or ()
    if len(shape) != 3 or not isinstance(shape[-1], int) or not same_shape(x, skip) or x.dtype not in TYPES:
        raise Refused("the sum is not of two [batch, tokens, channels] of one shape")
    if integer(node, "axis", -1) not in (-1, 2) or len(node.inputs) < 3 or len(node.outputs) > 1 or add.outputs[0].is_graph_output():
        raise Refused("it is not over the channels, lacks a bias or gives more than the result")
    for value, other in ((x, skip), (skip, x)):
        parts = bias_of(value.producer(), shape[-1])
        if parts is not None and only_user(value, "Add") is add:
            return _Site(add, parts[0], other, parts[1])
    return _Site(add, x, skip, None)


def _fuse(site: _Site, node: ir.Node) -> None:
    scale, shift = node.inputs[1:3]
    inputs = [site.x, site.skip, scale, shift, *([site.bias] if site.bias is not None else [])]
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    fused = insert(site.add, "SkipLayerNormalization", inputs, {"epsilon": epsilon}, node.name, outputs=4)
    result, total = fused.outputs[0], fused.outputs[3]
    for unused in fused.outputs[1:3]:
        unused.name = ""
    for value in (result, total):
        adopt(value, site.add.outputs[0])
    replace(node, result)
    replace(site.add, total)


FUSE_SKIP_LAYER_NORM = fusion("fuse skip and layer norm", _is_candidate, _site, _fuse)
