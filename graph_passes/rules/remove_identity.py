"""Identity(x) -> x"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.rule import Refused, Rule


def rewrite(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise Refused("the input is left out")
    return value


REMOVE_IDENTITY = Rule("remove identities", ("Identity",), rewrite)
