"""conv3x3(x, w) + bias -> A^T [(G w G^T) * (B^T x B)] A + bias in standard operators: slices, products of matrices, a pixel shuffle

For runtimes that have no kernel of ours and multiply matrices faster than they convolve. With P tiles of m x m pixels in a picture:

    tiles [(m+2)^2, N C P]     (m+2)^2 slices of the padded x, one for each pixel of a tile
    V     [(m+2)^2, N, C, P]   the transform of the inputs: one product with B^T (x) B^T
    M     [(m+2)^2, N, O, P]   (m+2)^2 products with the weights, which are transformed when they are written
    y     [m^2, N O P]         the transform back: one product with A^T (x) A^T, then the tiles in their places, and the bias

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, algorithm 1. Heights and widths are multiples of m.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from graph_passes.ops.winograd_conv import POINTS, is_candidate, refused_convolutions, site, weight_transform
from graph_passes.rule import Refused, emit, emit_constant, replace
from graph_passes.step import Outcome, Pass
from graph_passes.values import add_made, graph_of, static_shape, stored


def input_transform(tile: int) -> np.ndarray:
    """B^T, float64 [tile + 2, tile + 2]: the row of a point holds the coefficients of prod(x - q) over the other points q, that of infinity
    those of the product over all."""
    points = POINTS[tile]
    rows = [np.poly([other for other in points if other != point])[::-1] for point in points]
    return np.array([*(np.append(row, 0.0) for row in rows), np.poly(points)[::-1]])


def output_transform(tile: int) -> np.ndarray:
    """A^T, float64 [tile, tile + 2]: the powers of every point; of infinity the highest alone."""
    powers = np.array(POINTS[tile])[None, :] ** np.arange(tile)[:, None]
    return np.hstack([powers, np.eye(tile)[:, -1:]])


def unfold(convolution: ir.Node, tile: int) -> ir.Value:
    """The value that takes the place of the convolution's output. Raises Refused where the sizes are free or no multiples of `tile`."""
    found, graph = site(convolution), graph_of(convolution)
    x, weights = convolution.inputs[:2]
    shape = static_shape(x)
    assert x is not None
    assert weights is not None
    if shape is None:
        raise Refused("the size of its pictures is free: fix the shapes first")
    images, channels, height, width = shape
    if height % tile or width % tile:
        raise Refused(f"{height}x{width} pixels are no whole tiles of {tile}x{tile}")
    edge, high, wide = tile + 2, height // tile, width // tile

    def add(op_type: str, inputs: list[ir.Value], suffix: str, sizes: tuple[int, ...], **attributes: object) -> ir.Value:
        value = emit(convolution, op_type, inputs, attributes, f"_{suffix}")
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(sizes)
        return value

    def integers(*numbers: int) -> ir.Value:
        return emit_constant(convolution, np.array(numbers, np.int64))

    def matrix(array: np.ndarray) -> ir.Value:
        return emit_constant(convolution, array.astype(np.float32))

    padded = add("Pad", [x, integers(0, 0, 1, 1, 0, 0, 1, 1)], "pad", (images, channels, height + 2, width + 2))
    axes, steps = integers(2, 3), integers(tile, tile)
    pixels, count = [], images * channels * high * wide
    for row in range(edge):
        for column in range(edge):
            ends = integers(row + tile * (high - 1) + 1, column + tile * (wide - 1) + 1)
            name = f"pixel_{row}_{column}"
            part = add("Slice", [padded, integers(row, column), ends, axes, steps], name, (images, channels, high, wide))
            pixels.append(add("Reshape", [part, integers(1, count)], f"{name}_flat", (1, count)))
    tiles = add("Concat", pixels, "tiles", (edge**2, count), axis=0)
    forward, backward = input_transform(tile), output_transform(tile)
    inputs = add("MatMul", [matrix(np.kron(forward, forward)), tiles], "inputs", (edge**2, count))
    by_image = (edge**2, images, channels, high * wide)
    inputs = add("Reshape", [inputs, integers(*by_image)], "inputs_by_image", by_image)
    source = stored(weights)
    make = functools.partial(_transformed, source, tile)
    transformed = add_made(graph, f"{weights.name}.winograd", make, source.dtype, [edge**2, 1, found.channels_out, channels])
    products = add("MatMul", [transformed, inputs], "products", (edge**2, images, found.channels_out, high * wide))
    flat = (edge**2, images * found.channels_out * high * wide)
    products = add("Reshape", [products, integers(*flat)], "products_flat", flat)
    outputs = add("MatMul", [matrix(np.kron(backward, backward)), products], "outputs", (tile**2, flat[1]))
    by_pixel = (tile, tile, images, found.channels_out, high, wide)
    outputs = add("Reshape", [outputs, integers(*by_pixel)], "outputs_by_pixel", by_pixel)
    order = (images, found.channels_out, high, tile, wide, tile)
    outputs = add("Transpose", [outputs], "tiles_in_order", order, perm=[2, 3, 4, 0, 5, 1])
    result = (images, found.channels_out, height, width)
    y = add("Reshape", [outputs, integers(*result)], "pictures", result)
    bias = convolution.inputs[2] if len(convolution.inputs) > 2 else None
    if bias is None:
        return y
    per_channel = add("Reshape", [bias, integers(1, found.channels_out, 1, 1)], "bias_per_channel", (1, found.channels_out, 1, 1))
    return add("Add", [y, per_channel], "bias", result)


def unfold_winograd(tile: int, least_channels: int = 32) -> Pass:
    """A pass that unfolds every convolution of stride 1 whose pictures are whole tiles and whose channels are `least_channels` or more:
    with fewer, transforming takes longer than convolving. Not for nnapi, coreml and qnn, whose convolutions are hardware."""
    return Pass(f"unfold convolutions to F({tile}x{tile})", lambda model: _apply(model, tile, least_channels), refused_convolutions)


def _apply(model: ir.Model, tile: int, least_channels: int) -> Outcome:
    applied, refused = 0, []
    for graph in list(model.graphs()):
        for node in graph:
            if not is_candidate(node):
                continue
            try:
                found = site(node)
            except Refused:
                continue  # told by refused_convolutions, with the reason
            try:
                if min(found.channels_in, found.channels_out) < least_channels:
                    raise Refused(f"{found.channels_in} -> {found.channels_out} channels are too few to pay for the transforms")
                replace(node, unfold(node, tile))
                applied += 1
            except Refused as reason:
                refused.append(f"Conv '{node.name}': {reason}")
    return Outcome(applied, refused=tuple(refused))


def _transformed(source: ir.TensorProtocol, tile: int) -> ir.Tensor:
    """float32 [O, C, 3, 3] -> G w G^T as [(tile + 2)^2, 1, O, C], transformed in float64 and rounded once."""
    weights, transform = source.numpy(), weight_transform(tile)
    channels_out, channels_in = weights.shape[:2]
    both = np.kron(transform, transform)
    result = np.empty((len(both), 1, channels_out, channels_in), np.float32)
    for channel in range(channels_out):  # one at a time: what is held in float64 is small
        result[:, 0, channel] = both @ weights[channel].reshape(channels_in, 9).T.astype(np.float64)
    return ir.Tensor(result)
