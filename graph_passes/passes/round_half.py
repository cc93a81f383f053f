"""A graph in float16 -> what it computes where float16 is real, in float32: every value rounded to 11 bits, and infinite beyond 65,504

ONNX Runtime's CPU provider runs a float16 graph in float32: it casts at the border of the graph, and so neither rounds nor overflows in
between. A check on it would pass what is black on a phone. In this twin of the graph each value is cast to float16 and back, which no
optimizer takes away; sums inside an operator are float32, as they are in the kernels of GPUs and NPUs.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.passes.half import FLOAT, HALF
from graph_passes.step import Pass
from graph_passes.values import is_constant, is_standard

# What only moves numbers about rounds nothing
VIEWS = ("Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")


def round_half(model: ir.Model) -> int:
    """Rewrites in place; returns how many values are rounded. Weights stay float16 and are cast when they are read."""
    graph, rounded = model.graph, 0
    for value in [*graph.inputs, *graph.initializers.values()]:
        if value.dtype == HALF and (is_constant(value) or value.is_graph_input()):
            uses = list(value.uses())
            single = _cast(graph, value, FLOAT)
            for use in uses:
                use.node.replace_input_with(use.idx, single)
    for node in list(graph):
        if is_standard(node, "Cast") and node.outputs[0].dtype == HALF:
            node.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
        elif is_standard(node, "ConstantOfShape") and node.outputs[0].dtype == HALF:
            filling = node.attributes["value"].as_tensor().numpy()
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filling.astype("float32")))
        for value in node.outputs:
            if value.dtype != HALF:
                continue
            value.type = ir.TensorType(FLOAT)
            if not is_standard(node, *VIEWS):
                uses = list(value.uses())
                result = _cast(graph, _cast(graph, value, HALF), FLOAT)
                for use in uses:
                    use.node.replace_input_with(use.idx, result)
                rounded += 1
    return rounded


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_as_{dtype.name.lower()}")
    output, producer = node.outputs[0], value.producer()
    output.name, output.shape, output.type = node.name, value.shape, ir.TensorType(dtype)
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return output


ROUND_HALF = Pass("round to float16", round_half)
