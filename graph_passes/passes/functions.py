"""A call of a model-local function -> its body, except for the bodies of our own operators"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from graph_passes.step import Pass

OWN_DOMAIN = "handheld"  # its functions are what a node runs as where its kernel is missing; inlining them would undo the fusion


def inline_functions(model: ir.Model) -> int:
    """Returns how many functions were taken apart."""
    before = len(model.functions)
    common.InlinePass(criteria=lambda function: function.domain != OWN_DOMAIN)(model)
    common.RemoveUnusedFunctionsPass()(model)
    return before - len(model.functions)


INLINE_FUNCTIONS = Pass("inline functions", inline_functions)
