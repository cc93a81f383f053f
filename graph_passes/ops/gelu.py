"""x * Phi(x) -> handheld.Gelu(x);  v * gelu(g), [v, g] = h -> handheld.Geglu(h);  x * sigmoid(1.702 x) -> handheld.QuickGelu(x).

Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; GEGLU: Shazeer, "GLU Variants Improve Transformer", 2020, equation 6.
Exporters write x * Phi(x) in two ways, and both are found: with Erf up to opset 19, and as the operator Gelu from opset 20 on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset14, script
from onnxscript.values import Opset

from graph_passes.rule import Refused, adopt, fusion, replace
from graph_passes.values import constant, dimensions, integer, integers, is_standard, only_user, operands, other_operand, producer

handheld = Opset("handheld", 1)
op: Any = opset14  # a body is ONNX spelled as Python: its types are not Python's

KERNEL_TYPES = (ir.DataType.FLOAT,)
QUICK = 1.702
CLOSE = 1e-3  # relative: exporters and their users write these constants with four digits and more


@script(handheld, default_opset=op)
def Gelu(x):  # type: ignore[no-untyped-def]
    """x * (1 + erf(x / sqrt 2)) / 2. x: float32 of any shape, which is the result's too."""
    distribution = op.Add(op.Erf(op.Mul(x, op.Constant(value_float=0.70710678))), op.Constant(value_float=1.0))
    return op.Mul(op.Mul(x, op.Constant(value_float=0.5)), distribution)


@script(handheld, default_opset=op)
def QuickGelu(x):  # type: ignore[no-untyped-def]
    """x * sigmoid(1.702 x). x: float32 of any shape, which is the result's too."""
    return op.Mul(x, op.Sigmoid(op.Mul(x, op.Constant(value_float=1.702))))


# Split would do, but the form without sizes is another one from opset 18 on.
@script(handheld, default_opset=op)
def Geglu(x):  # type: ignore[no-untyped-def]
    """value * gelu(gate). x: float32 [..., 2C], the value and then the gate. Returns [..., C]."""
    last = op.Constant(value_ints=[-1])
    size = op.Gather(op.Shape(x), last)
    half = op.Div(size, op.Constant(value_ints=[2]))
    value = op.Slice(x, op.Constant(value_ints=[0]), half, last)
    gate = op.Slice(x, half, size, last)
    return op.Mul(value, Gelu(gate))


@dataclass(frozen=True)
class Site:
    """An activation as an exporter wrote it: its input, and the node whose output becomes that of the fused one."""

    last: ir.Node
    op_type: str
    x: ir.Value


def is_candidate(node: ir.Node) -> bool:
    """Whether a GELU of any form is built around the node."""
    if is_standard(node, "Gelu", "Erf"):
        return True
    scaled = producer(node.inputs[0], "Mul") if is_standard(node, "Sigmoid", "Tanh") else None
    return scaled is not None and _factor(scaled, QUICK if node.op_type == "Sigmoid" else math.sqrt(2 / math.pi)) is not None


def find_site(node: ir.Node, types: tuple[ir.DataType, ...] = KERNEL_TYPES) -> Site:
    """The activation around `node`. Raises Refused with the reason where it is none, or not one for a kernel of these types."""
    if node.op_type == "Tanh" or (node.op_type == "Gelu" and _approximation(node) != "none"):
        raise Refused("the approximation of GELU by tanh is another function than the kernel's, which is exact")
    if node.op_type == "Sigmoid":
        site = _quick_gelu(node)
    else:
        site = Site(node, "Gelu", operands(node)[0]) if node.op_type == "Gelu" else _around_erf(node)
        site = _geglu(site) or site
    if site.x.dtype not in types:
        taken = " and ".join(each.name for each in types)
        raise Refused(f"the input is {site.x.dtype or 'of unknown type'}, and the kernel takes {taken}")
    return site


def _quick_gelu(sigmoid: ir.Node) -> Site:
    scaled = producer(sigmoid.inputs[0], "Mul")
    x = _factor(scaled, QUICK) if scaled is not None else None
    product = only_user(sigmoid.outputs[0], "Mul")
    if x is None or product is None or other_operand(product, sigmoid.outputs[0]) is not x:
        raise Refused("the sigmoid of 1.702 x is not multiplied with x alone")
    return Site(product, "QuickGelu", x)


def _around_erf(erf: ir.Node) -> Site:
    """x * (1 + erf(x / sqrt 2)) / 2, its three factors in any order."""
    argument = producer(erf.inputs[0], "Div", "Mul")
    x = _factor(argument, math.sqrt(0.5)) if argument is not None else None
    shifted = only_user(erf.outputs[0], "Add")
    if x is None or shifted is None or not _is_number(other_operand(shifted, erf.outputs[0]), 1):
        raise Refused("it is not 1 + erf(x / sqrt 2)")
    first = only_user(shifted.outputs[0], "Mul")
    if first is not None:
        other = other_operand(first, shifted.outputs[0])
        half_x = producer(other, "Mul", "Div")
        if half_x is not None and _factor(half_x, 0.5) is x:
            return Site(first, "Gelu", x)
        second = only_user(first.outputs[0], "Mul", "Div")
        if second is not None and other is x and _factor(second, 0.5) is first.outputs[0]:
            return Site(second, "Gelu", x)
        if second is not None and _is_number(other, 0.5) and second.op_type == "Mul" and other_operand(second, first.outputs[0]) is x:
            return Site(second, "Gelu", x)
    raise Refused("1 + erf(x / sqrt 2) is not multiplied with x and one half, and nothing else")


def _geglu(gelu: Site) -> Site | None:
    """Takes in the product with the first half of the tensor whose second half is activated, where that is all that becomes of it."""
    activated = gelu.last.outputs[0]
    product = only_user(activated, "Mul")
    if product is None:
        return None
    value, whole = other_operand(product, activated), _source(gelu.x)
    channels = (dimensions(whole) or (None,))[-1]
    if whole is None or _source(value) is not whole or not isinstance(channels, int) or channels % 2:
        return None
    halves = [(0, channels // 2), (channels // 2, channels)]
    return Site(product, "Geglu", whole) if [_part(value, channels), _part(gelu.x, channels)] == halves else None


def _source(part: ir.Value) -> ir.Value | None:
    node = producer(part, "Split", "Slice")
    return node.inputs[0] if node is not None else None


def _part(value: ir.Value, channels: int) -> tuple[int, int] | None:
    """From where and to where `value` is cut out of the last axis, of `channels`, of the tensor that a Split or a Slice reads."""
    node = producer(value, "Split", "Slice")
    assert node is not None
    rank = len(dimensions(node.inputs[0]) or ())
    if node.op_type == "Split":
        if integer(node, "axis", 0) not in (-1, rank - 1):
            return None
        lengths = _lengths(node, channels)
        index = list(node.outputs).index(value)
        return None if lengths is None else (sum(lengths[:index]), sum(lengths[: index + 1]))
    arrays = [constant(each) for each in node.inputs[1:]]
    if any(each is None or each.size != 1 for each in arrays) or len(arrays) < 3:
        return None
    start, end, axis, step = [int(each.reshape(())) for each in arrays if each is not None] + [1] * (4 - len(arrays))
    if axis not in (-1, rank - 1) or step != 1:
        return None
    return slice(start, end).indices(channels)[:2]


def _lengths(split: ir.Node, channels: int) -> list[int] | None:
    """The sizes of the parts, where they are given or equal."""
    given = split.inputs[1] if len(split.inputs) > 1 else None
    if given is not None:
        array = constant(given)
        return None if array is None else [int(each) for each in array]
    count = len(split.outputs)
    return integers(split, "split") or ([channels // count] * count if channels % count == 0 else None)


def _fuse(site: Site, _: ir.Node) -> None:
    node = ir.node(site.op_type, [site.x], domain=handheld.domain, name=site.last.name)
    assert site.last.graph is not None
    site.last.graph.insert_before(site.last, node)
    adopt(node.outputs[0], site.last.outputs[0])
    replace(site.last, node.outputs[0])


def _approximation(node: ir.Node) -> str:
    attribute = node.attributes.get("approximate")
    return "none" if attribute is None else str(attribute.as_string())


def _factor(node: ir.Node, number: float) -> ir.Value | None:
    """The operand that a Mul multiplies with `number`, or that a Div divides by its inverse; None where it does neither."""
    first, second = operands(node)
    if _is_number(second, number if node.op_type == "Mul" else 1 / number):
        return first
    return second if node.op_type == "Mul" and _is_number(first, number) else None


def _is_number(value: ir.Value | None, number: float) -> bool:
    array = constant(value)
    return array is not None and array.size == 1 and bool(np.abs(array - number) <= CLOSE * abs(number))


FUSE_GELU = fusion("fuse gelu", is_candidate, find_site, _fuse)
