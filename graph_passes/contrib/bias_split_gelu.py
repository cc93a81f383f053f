"""v * gelu(g), [v, g] = x + bias -> com.microsoft.BiasSplitGelu(x, bias)  (GEGLU: Shazeer, 2020, equation 6)

The CUDA kernel takes [batch, tokens, 2560, 5120 or 10240] (contrib_ops/cuda/diffusion/bias_split_gelu.cc), WebGPU's any width.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.contrib.nodes import TYPES, bias_of, insert
from graph_passes.ops.gelu import Site, find_site, is_candidate
from graph_passes.rule import Refused, adopt, fusion, replace
from graph_passes.step import Pass
from graph_passes.values import dimensions

CUDA_WIDTHS = (2560, 5120, 10240)


def fuse_bias_split_gelu(widths: tuple[int, ...] = ()) -> Pass:
    """The pass for a kernel that takes these widths of x alone, or any."""

    def site(node: ir.Node) -> Site:
        found = find_site(node, TYPES)
        shape = dimensions(found.x) or ()
        if len(shape) != 3 or not isinstance(shape[-1], int) or bias_of(found.x.producer(), shape[-1]) is None:
            raise Refused("what is split is not [batch, tokens, channels] plus a bias")
        if widths and shape[-1] not in widths:
            raise Refused(f"the CUDA kernel takes {_text(widths)} channels, not {shape[-1]}")
        return found

    return fusion("fuse bias, split and GELU", _is_geglu, site, _fuse)


def _is_geglu(node: ir.Node) -> bool:
    try:
        return is_candidate(node) and find_site(node, TYPES).op_type == "Geglu"
    except Refused:
        return False


def _text(widths: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, widths[:-1]))} or {widths[-1]}"


def _fuse(site: Site, _: ir.Node) -> None:
    shape = dimensions(site.x)
    assert shape is not None
    parts = bias_of(site.x.producer(), int(shape[-1] or 0))
    assert parts is not None
    result = insert(site.last, "BiasSplitGelu", parts, {}, site.last.name).outputs[0]
    adopt(result, site.last.outputs[0])
    replace(site.last, result)
