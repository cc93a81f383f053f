"""Constant nodes become initializers; nodes whose inputs are all small constants become their result."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx.reference import ReferenceEvaluator

from graph_passes.step import Pass
from graph_passes.values import DEFAULT_DOMAINS, SMALL, add_initializer, constant, is_parameter_name, static_shape

# Quantized weights are small because they are not folded
QUANTIZATION = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))
RANDOM = frozenset(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"))
# Operators that make a tensor of a size that an input says, however small the input is
GROWING = frozenset(("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "OneHot", "EyeLike"))


def lift_constants(model: ir.Model) -> int:
    """Constant(value) -> an initializer, so that every later pass has one kind of constant to look for."""
    before = _count(model, "Constant")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return before - _count(model, "Constant")


def fold_constants(model: ir.Model) -> int:
    """f(constants) -> the constant, computed by onnx's reference implementation where neither inputs nor outputs exceed SMALL bytes."""
    opset = model.opset_imports.get("", 0)
    folded = 0
    for graph in list(model.graphs()):
        for node in graph:
            arrays = _foldable(node)
            if arrays is None:
                continue
            results = evaluate(node, arrays, opset)
            if results is None:
                continue
            for output, result in zip(node.outputs, results, strict=True):
                output.replace_all_uses_with(add_initializer(graph, ir.tensor(result), derived_name(node)))
            graph.remove(node, safe=True)
            folded += 1
    return folded


def derived_name(node: ir.Node) -> str:
    """The name of a constant computed by `node`: that of the parameter it comes from and what was done to it, if it comes from one."""
    parameters = [value.name for value in node.inputs if value is not None and is_parameter_name(value.name)]
    return f"{parameters[0]}.{node.op_type.lower()}" if len(parameters) == 1 else f"{node.name or node.op_type}_folded"


def evaluate(node: ir.Node, arrays: list[np.ndarray | None], opset: int) -> list[np.ndarray] | None:
    """The outputs of a standard node for given inputs, None where the reference implementation has no answer."""
    names = ["" if array is None else f"input_{index}" for index, array in enumerate(arrays)]
    proto = ir.serde.serialize_node(node)
    proto.input[:] = names
    proto.output[:] = [f"output_{index}" for index in range(len(node.outputs))]
    try:
        evaluator = ReferenceEvaluator(proto, opsets={"": opset})
        results = evaluator.run(None, {name: array for name, array in zip(names, arrays, strict=True) if array is not None})
    except Exception:  # the evaluator raises whatever its operators raise; the graph's own error is for the runtime to tell
        return None
    if not all(isinstance(result, (np.ndarray, np.generic)) for result in results):
        return None
    return [np.asarray(result) for result in results]


def _foldable(node: ir.Node) -> list[np.ndarray | None] | None:
    """The arrays of the inputs of a node that can be computed now, else None."""
    if node.domain not in DEFAULT_DOMAINS or node.op_type in QUANTIZATION | RANDOM or not node.inputs:
        return None
    if any(output.is_graph_output() for output in node.outputs):
        return None
    if any(each.is_ref() or each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()):
        return None
    arrays = [None if value is None else constant(value) for value in node.inputs]
    if any(array is None and value is not None for array, value in zip(arrays, node.inputs, strict=True)):
        return None
    for output in node.outputs:
        shape = static_shape(output)
        if shape is None and node.op_type in GROWING:
            return None
        if shape is not None and int(np.prod(shape)) * 8 > SMALL:
            return None
    return arrays


def _count(model: ir.Model, op_type: str) -> int:
    return sum(node.op_type == op_type for node in ir.traversal.RecursiveGraphIterator(model.graph))


LIFT_CONSTANTS = Pass("lift constants", lift_constants)
FOLD_CONSTANTS = Pass("fold constants", fold_constants)
