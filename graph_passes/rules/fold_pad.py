"""Conv(Pad(x, p), pads=q) -> Conv(x, pads=p + q) where Pad adds zeros to the spatial axes alone

The VAE's encoder pads its downsampling convolutions so, on two sides of four.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit
from graph_passes.values import constant, dimensions, integers, producer


def rewrite(node: ir.Node) -> ir.Value:
    pad = producer(node.inputs[0], "Pad")
    if pad is None:
        raise Refused("the input is no Pad")
    mode, automatic = pad.attributes.get("mode"), node.attributes.get("auto_pad")
    if mode is not None and mode.as_string() != "constant":
        raise Refused("the padding repeats what is inside")
    if automatic is not None and automatic.as_string() != "NOTSET":
        raise Refused("the convolution chooses its padding itself")
    amounts, sizes = constant(pad.inputs[1]), dimensions(pad.inputs[0])
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    filler = None if value is None else constant(value)
    if value is not None and (filler is None or filler.any()):
        raise Refused("the padding is not known to be zero")
    if amounts is None or sizes is None or (len(pad.inputs) > 3 and pad.inputs[3] is not None):
        raise Refused("the amounts or the rank are only known at run time")
    rank = len(sizes)
    before, after = [int(each) for each in amounts[:rank]], [int(each) for each in amounts[rank:]]
    if any(each < 0 for each in before + after) or any(before[:2] + after[:2]):
        raise Refused("the padding crops, or is not of the spatial axes alone")
    own = integers(node, "pads") or [0] * (2 * (rank - 2))
    attributes = dict(node.attributes)
    attributes["pads"] = ir.AttrInt64s("pads", [extra + each for extra, each in zip(before[2:] + after[2:], own, strict=True)])
    return emit(node, "Conv", [pad.inputs[0], *node.inputs[1:]], attributes)


FOLD_PAD = Rule("fold pads", ("Conv",), rewrite)
