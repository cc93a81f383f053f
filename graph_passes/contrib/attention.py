"""softmax(scale * q k' + mask) v, with its heads apart -> com.microsoft.MultiHeadAttention(q, k, v, attention_bias=mask)

Operands and result are [batch, tokens, heads * dim]. The CPU and WebGPU providers take this form too; the CUDA provider is given q, k and v
in one tensor where it can be (`pack attention`).
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.contrib.nodes import TYPES, insert
from graph_passes.ops.attention import Site, find_site, is_candidate, join_heads, put_result, with_four_axes
from graph_passes.rule import Refused, adopt, fusion
from graph_passes.values import dimensions, only_user


def _site(softmax: ir.Node) -> Site:
    site = find_site(softmax, TYPES)
    if only_user(softmax.outputs[0], "MatMul") is None:
        raise Refused("rows that are masked throughout are guarded, and MultiHeadAttention knows no guard")
    if site.mask is not None:
        shape, queries, keys = dimensions(site.mask) or (), dimensions(site.q), dimensions(site.k)
        assert queries is not None
        assert keys is not None
        if site.mask.dtype != site.q.dtype or len(shape) < 2 or shape[-2:] != (queries[1], keys[1]):
            raise Refused("the mask is not known to be a number for every query and key")
    return site


def _fuse(site: Site, softmax: ir.Node) -> None:
    inputs: list[ir.Value | None] = [join_heads(value, site, site.last) for value in (site.q, site.k, site.v)]
    if site.mask is not None:
        inputs += [None, None, with_four_axes(site.mask, site.last)]
    node = insert(site.last, "MultiHeadAttention", inputs, {"num_heads": site.heads, "scale": site.scale}, softmax.name)
    assert inputs[0] is not None
    adopt(node.outputs[0], inputs[0])
    put_result(site, node.outputs[0])


FUSE_MULTI_HEAD_ATTENTION = fusion("fuse multi-head attention", is_candidate, _site, _fuse)
