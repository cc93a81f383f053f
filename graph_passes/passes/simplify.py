"""onnxsim, on request: what it makes is taken where it has fewer nodes and only standard operators

It is in no pipeline, because after the passes of this project it has nothing left to give. Nodes of the tiny model's graphs, torch 2.13,
onnxsim 0.8.1, opset 20 (dynamic, static) and 17 (TorchScript, dynamic):

                   exported            onnxsim alone    our passes          and then onnxsim
    text encoder   342 / 314 / 359     - / - / 236      122 / 109 / 128     155 / 106 / 165
    U-Net          4922 / 4543 / 4292  - / - / 2005     1536 / 1472 / 1732  1776 / 1488 / 1972
    VAE decoder    942 / 929 / 519     - / - / 337      292 / 286 / 315     295 / 285 / 318

It joins the MatMuls of queries, keys and values into one Gemm, which with dynamic axes takes more Shape and Reshape than it saves; told not
to, it makes Attention nodes of com.microsoft. And it serializes the model with its weights, hence the limit.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.errors import GraphError
from graph_passes.step import Pass
from graph_passes.values import dimensions, nodes

LIMIT = 64 << 20  # bytes of weights


def simplify(model: ir.Model) -> int:
    """Returns how many nodes went; 0 where onnxsim's graph was no better and was dropped.

    Errors: GraphError where the weights exceed LIMIT, or where onnxsim is not installed.
    """
    size = sum(tensor.nbytes for graph in model.graphs() for tensor in graph.initializers.tensors())
    if size > LIMIT:
        raise GraphError(f"The weights are {size >> 20} MB, and onnxsim is only used up to {LIMIT >> 20} MB. Leave --simplify out.")
    try:
        import onnxsim
    except ImportError:
        raise GraphError("onnxsim is not installed. Install it, or leave --simplify out.") from None
    proto, _ = onnxsim.simplify(ir.to_proto(model))
    simpler = ir.from_proto(proto)
    fewer = nodes(model) - nodes(simpler)
    if fewer <= 0 or not set(simpler.opset_imports) <= set(model.opset_imports) or _interface(simpler) != _interface(model):
        return 0
    model.graph = simpler.graph
    return fewer


def _interface(model: ir.Model) -> list[object]:
    """Names, types and shapes of what goes in and what comes out."""
    ports = (*model.graph.inputs, *model.graph.outputs)
    return [(value.name, value.dtype, dimensions(value), str(value.shape)) for value in ports]


SIMPLIFY = Pass("simplify with onnxsim", simplify)
