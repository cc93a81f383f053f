"""onnxsim, on request: what it makes is taken where it has fewer nodes and only standard operators

It is in no pipeline, because after the passes of this project it has nothing left to give. Nodes of the tiny model's graphs, torch 2.13,
onnxsim 0.8.1, opset 20 (dynamic, static) and 17 (TorchScript, dynamic):

                   exported            onnxsim alone    our passes          and then onnxsim
    text encoder   342 / 314 / 359     - / - / 236      122 / 109 / 128     155 / 106 / 165
    U-Net          4922 / 4543 / 4292  - / - / 2005     1536 / 1472 / 1732  1776 / 1488 / 1972
    VAE decoder    942 / 929 / 519     - / - / 337      292 / 286 / 315     295 / 285 / 318

It joins the MatMuls of queries, keys and values into one Gemm, which with dynamic axes takes more Shape and Reshape than it saves; told not
to, it makes Attention nodes of com.microsoft. It serializes what it is given, so that large weights go in as inputs of the graph: models of
any size pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from graph_passes.errors import GraphError
from graph_passes.step import Pass
from graph_passes.values import SMALL, dimensions, is_constant, nodes


def simplify(model: ir.Model) -> int:
    """Returns how many nodes went; 0 where onnxsim's graph was no better and was dropped. Errors: GraphError where it is not installed."""
    try:
        import onnxsim
    except ImportError:
        raise GraphError("onnxsim is not installed. Install it, or leave --simplify out.") from None
    interface, weights = _interface(model), _large_weights(model)
    with _as_inputs(model.graph, weights):
        proto, _ = onnxsim.simplify(ir.to_proto(model))
    simpler = ir.from_proto(proto)
    for value in [value for value in simpler.graph.inputs if value.name in weights]:
        simpler.graph.inputs.remove(value)
        if value.uses():
            value.const_value = weights[value.name].const_value
            simpler.graph.register_initializer(value)
    fewer = nodes(model) - nodes(simpler)
    if fewer <= 0 or not set(simpler.opset_imports) <= set(model.opset_imports) or _interface(simpler) != interface:
        return 0
    model.graph = simpler.graph
    return fewer


def _large_weights(model: ir.Model) -> dict[str, ir.Value]:
    """The initializers of the graph above SMALL, by name."""
    constants = {name: value for name, value in model.graph.initializers.items() if is_constant(value)}
    return {name: value for name, value in constants.items() if value.const_value is not None and value.const_value.nbytes > SMALL}


@contextmanager
def _as_inputs(graph: ir.Graph, weights: dict[str, ir.Value]) -> Iterator[None]:
    """Makes initializers inputs of the graph, until the block ends."""
    inputs = len(graph.inputs)
    for name, value in weights.items():
        del graph.initializers[name]
        graph.inputs.append(value)
    try:
        yield
    finally:
        del graph.inputs[inputs:]
        for value in weights.values():
            graph.register_initializer(value)


def _interface(model: ir.Model) -> list[object]:
    """Names, types and shapes of what goes in and what comes out."""
    ports = (*model.graph.inputs, *model.graph.outputs)
    return [(value.name, value.dtype, dimensions(value), str(value.shape)) for value in ports]


SIMPLIFY = Pass("simplify with onnxsim", simplify)
