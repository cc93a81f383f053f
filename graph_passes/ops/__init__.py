"""The custom ops of the domain `handheld`: one module each, the list of them here."""

from __future__ import annotations

from onnxscript import OnnxFunction

from graph_passes.ops.attention import FlashAttention, PartialSoftmaxAttention
from graph_passes.ops.gelu import Geglu, Gelu, QuickGelu
from graph_passes.ops.group_norm import GroupNorm, GroupNormSilu
from graph_passes.ops.linear import Linear, LinearAdd, LinearGeglu, PointwiseConv, PointwiseConvAdd
from graph_passes.ops.winograd_conv import WinogradConv, WinogradConvAdd, WinogradConvSilu

BODIES: dict[str, OnnxFunction] = {
    body.name: body
    for body in (
        *(GroupNorm, GroupNormSilu),
        *(FlashAttention, PartialSoftmaxAttention),
        *(Gelu, QuickGelu, Geglu),
        *(Linear, LinearAdd, LinearGeglu),
        *(PointwiseConv, PointwiseConvAdd),
        *(WinogradConv, WinogradConvAdd, WinogradConvSilu),
    )
}
