"""Resize(x, roi, scales or sizes) of nearest neighbours -> Resize(x, everything, scales) with no attribute that says what is so anyway

An input that is left out, or empty, has no size: ONNX Runtime's usability checker takes it for a dynamic one. The region of interest plays
no part in this form, so it may as well be all of x.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.rule import Refused, Rule, emit, emit_constant
from graph_passes.values import constant, static_shape

FORM = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def rewrite(node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    before, after = static_shape(x), static_shape(node.outputs[0])
    if any(node.attributes.get_string(name, "") != value for name, value in FORM.items()):
        raise Refused("the neighbours are not those at the rounded down, asymmetric place")
    if before is None or after is None or len(before) != 4 or before[:2] != after[:2]:
        raise Refused("it is not known to enlarge height and width alone")
    if any(new % old for old, new in zip(before, after, strict=True)):
        raise Refused("the factors are no whole numbers")
    if len(node.inputs) == 3 and constant(node.inputs[1]) is not None and set(node.attributes) <= set(FORM):
        raise Refused("it has that form already")
    scales = np.array([new / old for old, new in zip(before, after, strict=True)], np.float32)
    everything = np.repeat(np.array([0, 1], np.float32), 4)
    return emit(node, "Resize", [x, emit_constant(node, everything), emit_constant(node, scales)], FORM)


ENLARGE_BY_FACTORS = Rule("enlarge by factors", ("Resize",), rewrite)
