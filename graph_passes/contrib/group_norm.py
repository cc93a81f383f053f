"""silu?(GroupNormalization(x)) -> com.microsoft.GroupNorm(x, gamma, beta), activation 0 or 1, still of NCHW: `channels last` turns it.

What ONNX Runtime's CUDA kernel takes (contrib_ops/cuda/diffusion/group_norm*): four axes, gamma and beta in float32 whatever x is, and of
each group an even number of channels, at most 512. Its variance is E[x^2] - E[x]^2 in float32, which loses the digits of a large mean.
"""

from __future__ import annotations

import functools
import math

import onnx_ir as ir

from graph_passes.contrib.nodes import TYPES, insert
from graph_passes.ops.group_norm import Site, find_site, is_candidate, per_channel
from graph_passes.passes.weights import moved
from graph_passes.rule import Refused, adopt, emit, fusion, replace
from graph_passes.values import add_made, dimensions, graph_of, is_constant, lengths, static_shape, stored

MOST_CHANNELS = 512  # of a group: a block of threads sums one group at least


def _site(node: ir.Node) -> Site:
    site = find_site(node, TYPES)
    shape = dimensions(site.x) or ()
    channels = math.prod(static_shape(site.scale) or (0,))  # it is one value per channel, however it is shaped
    if len(shape) != 4 or shape[1] != channels:
        raise Refused("the input is not known to be [batch, channels, height, width]")
    of_group = channels // site.groups
    if of_group % 2 or of_group > MOST_CHANNELS:
        raise Refused(f"the CUDA kernel takes an even number of channels in a group, at most {MOST_CHANNELS}, not {of_group}")
    return site


def _fuse(site: Site, normalization: ir.Node) -> None:
    last = site.last
    inputs = [site.x, *(_in_float32(per_channel(value, last), last) for value in (site.scale, site.bias))]
    silu = int(site.op_type == "GroupNormSilu")
    attributes = {"epsilon": site.epsilon, "groups": site.groups, "activation": silu, "channels_last": 0}
    result = insert(last, "GroupNorm", inputs, attributes, normalization.name).outputs[0]
    adopt(result, site.x)
    # a view of [batch, channels, ...] as [batch, channels, positions] commutes with what is done to each channel
    replace(last, result if site.view is None else emit(last, "Reshape", [result, site.view.inputs[1]]))


def _in_float32(value: ir.Value, before: ir.Node) -> ir.Value:
    if value.dtype == ir.DataType.FLOAT:
        return value
    if not is_constant(value):
        return emit(before, "Cast", [value], {"to": ir.DataType.FLOAT.value}, suffix="_float")
    tensor = stored(value)
    make = functools.partial(moved, tensor, None, lengths(tensor), ir.DataType.FLOAT)
    return add_made(graph_of(before), f"{value.name}_float", make, ir.DataType.FLOAT, lengths(tensor))


FUSE_CONTRIB_GROUP_NORM = fusion("fuse com.microsoft group norm", is_candidate, _site, _fuse)
