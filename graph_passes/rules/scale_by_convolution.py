"""Add(Mul(x, a), b) -> Conv(x, filters a, bias b, group = C) for x: [N, C, ...] and constants a, b: [C, 1, ...]

A number to each channel is a convolution with a filter of one weight over each channel alone. In 8 bits with a scale to each channel
such filters are exact, and the bias has 32. HTP has no other right form: the compiler of QNN 2.51 moves the transpositions around
convolutions through Mul and Add, and what it makes of their broadcast constant between 16-bit integers is not what stands there.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit
from graph_passes.values import add_made, graph_of, is_constant, operands, producer, static_shape, stored


def rewrite(node: ir.Node) -> ir.Value:
    product, bias = _by_channel(node)
    scale = producer(product, "Mul")
    if scale is None or len(product.uses()) != 1 or product.is_graph_output():
        raise Refused("what is added to is no product, or is used without the sum, too")
    x, gain = _by_channel(scale)
    graph, (channels, *ones) = graph_of(node), static_shape(gain) or ()

    def filters() -> ir.Tensor:
        return ir.Tensor(stored(gain).numpy().reshape(channels, 1, *ones))

    def biases() -> ir.Tensor:
        return ir.Tensor(stored(bias).numpy().reshape(channels))

    constants = [add_made(graph, f"{gain.name}.filters", filters, ir.DataType.FLOAT, (channels, 1, *ones)),
                 add_made(graph, f"{bias.name}.flat", biases, ir.DataType.FLOAT, (channels,))]
    return emit(node, "Conv", [x, *constants], {"group": channels, "kernel_shape": ones})


def _by_channel(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """A node's operand of 3 or 4 axes, and the constant that has one number for each of its channels."""
    first, second = operands(node)
    value, constant = (second, first) if is_constant(first) else (first, second)
    shape = static_shape(value)
    if not is_constant(constant) or constant.dtype != ir.DataType.FLOAT:
        raise Refused("neither operand is a constant of FLOAT")
    if shape is None or len(shape) not in (3, 4) or static_shape(constant) != (shape[1], *[1] * (len(shape) - 2)):
        raise Refused("the constant does not have one number for each channel of 3 or 4 axes")
    return value, constant


SCALE_BY_CONVOLUTION = Rule("scale by convolution", ("Add",), rewrite)
