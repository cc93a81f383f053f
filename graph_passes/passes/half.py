"""float32 -> float16 between a graph's inputs and outputs, but for the nodes whose values overflow there

float16 ends at 65,504, and what exceeds it becomes infinite, and NaN one norm later: black pictures. So the nodes that touch a value
which came within MARGIN of that end on measured trajectories stay in float32, and with them the sinusoids of the timestep: 11 bits of
981.3 leave a sine no digit. Inputs and outputs stay float32, at one Cast each: who calls the graph needs to know nothing of its inside.

Casts are a budget. Where what overflows lies scattered, as along the residuals of SDXL's decoder, stretches between follow into float32,
those with the fewest weights first; never the one with the most, so that a graph which has but one is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from graph_passes.contrib.nodes import ALWAYS_FLOAT32, DOMAIN
from graph_passes.errors import GraphError
from graph_passes.step import Outcome, Pass
from graph_passes.values import DEFAULT_DOMAINS, add_initializer, is_constant, is_standard, stored

Ranges = Mapping[str, tuple[float, float]]  # the least and the largest of a value, by its name
Measure = Callable[[ir.Model], Ranges]  # ... as a graph computes them on real inputs

LARGEST = 65504.0
MARGIN = 4.0  # other prompts, seeds and sizes than those that were measured reach further
# What a graph may have beyond one for each input and output, each being a pass over memory for no arithmetic: of its nodes, but at least
CASTS_PER_NODE, FEWEST_CASTS = 0.05, 8
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
SINUSOIDS = ("Sin", "Cos")
HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")
# Their output's type is an attribute that says float32
TYPED = ("EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Range")


def half(measure: Measure | None = None) -> Pass:
    """The pass. Without `measure` only what needs no measuring stays in float32."""
    return Pass("convert to float16", functools.partial(to_half, measure=measure))


def to_half(model: ir.Model, measure: Measure | None = None) -> Outcome:
    """Converts in place; returns how many nodes compute in float16, the number of casts, and why nodes stayed in float32.

    Weights are converted while they are written. Errors: GraphError for a graph with branches, one that would need too many casts, and,
    when it is written, a weight that float16 cannot hold.
    """
    graph = model.graph
    if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for node in graph for attribute in node.attributes.values()):
        raise GraphError("The graph has branches or loops, and is not converted to float16.")
    opset = model.opset_imports.get("", 0)
    ranges = measure(model) if measure else {}
    reasons = _reasons(graph, ranges, opset)
    single = set(reasons)
    _absorb(graph, single, opset)
    floats = [node for node in graph if any(value.dtype == FLOAT for value in node.outputs)]
    ports = len(graph.inputs) + len(graph.outputs)
    budget = ports + max(FEWEST_CASTS, round(CASTS_PER_NODE * len(floats)))
    _merge(model, floats, single, opset, budget)
    _convert(graph, single, opset)
    casts = count_casts(model)
    if casts > budget:
        raise GraphError(f"In float16 the graph needs {casts} casts, where {budget} are allowed ({ports} for its inputs and outputs, "
                         f"{budget - ports} for its {len(floats)} nodes): too many of its values overflow. Take fp32 for it.")
    notes = (f"{casts} casts of at most {budget}; {len(single)} of {len(floats)} nodes in float32, {len(single) - len(reasons)} of them to "
             "save casts" + ("" if measure else "; no ranges were measured"),)
    return Outcome(len(floats) - len(single), notes, tuple(f"{node.op_type} '{node.name}': {why}" for node, why in reasons.items()))


def count_casts(model: ir.Model) -> int:
    """How many nodes cast one floating-point type to another."""
    return sum(is_standard(node, "Cast") and all(value is not None and value.dtype is not None and value.dtype.is_floating_point()
                                                 for value in (node.inputs[0], node.outputs[0])) for node in model.graph)


def _reasons(graph: ir.Graph, ranges: Ranges, opset: int) -> dict[ir.Node, str]:
    """The nodes that must compute in float32, each with a sentence's end."""
    reasons: dict[ir.Node, str] = {}
    for node in graph:
        for value in (*node.inputs, *node.outputs):
            if value is None or value.dtype != FLOAT or value.name is None or value.name not in ranges:
                continue
            peak = max(map(abs, ranges[value.name]))
            if not peak <= LARGEST / (1.0 if is_constant(value) else MARGIN):  # NaN too
                reasons.setdefault(node, f"'{value.name}' reaches {peak:.3g}")
        for each in sine_arguments(node):
            reasons.setdefault(each, "float16 is too coarse for the argument of a sine")
        if not all(_half_port(node, index, opset, output=True) for index, value in enumerate(node.outputs) if value.dtype == FLOAT):
            reasons.setdefault(node, "the operator has no float16")
    return {node: reasons[node] for node in graph if node in reasons and any(value.dtype == FLOAT for value in node.outputs)}


def sine_arguments(node: ir.Node) -> list[ir.Node]:
    """A sine or a cosine of the timestep, and all that it is computed from; nothing for other nodes."""
    if not is_standard(node, *SINUSOIDS):
        return []
    found = open_ = [node]
    while open_:
        values = (value for each in open_ for value in each.inputs if value is not None)
        producers = dict.fromkeys(producer for value in values if (producer := value.producer()) is not None)
        open_ = [producer for producer in producers if producer not in found]
        found = found + open_
    return [] if any(is_standard(each, *HEAVY) for each in found) else found


def _half_port(node: ir.Node, index: int, opset: int, output: bool = False) -> bool:
    """Whether an operator's input or output can be float16; where ONNX does not know the operator, yes."""
    if node.domain not in DEFAULT_DOMAINS:
        return output or node.domain != DOMAIN or index not in ALWAYS_FLOAT32.get(node.op_type, ())
    return node.op_type not in TYPED and _of_schema(node.op_type, opset, index, output)


@functools.cache
def _of_schema(op_type: str, opset: int, index: int, output: bool) -> bool:
    schema = onnx.defs.get_schema(op_type, opset)
    ports = schema.outputs if output else schema.inputs
    return "tensor(float16)" in ports[min(index, len(ports) - 1)].types


def _wanted(node: ir.Node, index: int, single: Collection[ir.Node], opset: int) -> ir.DataType | None:
    """The type that a node takes its float32 input `index` in; None where it takes either, as Shape does."""
    if not any(value.dtype == FLOAT for value in node.outputs):
        alone = sum(value is not None and value.dtype == FLOAT for value in node.inputs) == 1
        return None if alone and _half_port(node, index, opset) else FLOAT
    return FLOAT if node in single or not _half_port(node, index, opset) else HALF


def _casts(value: ir.Value, single: Collection[ir.Node], opset: int) -> int:
    """How many casts a value needs: one for each type that is wanted of it and is not its own."""
    producer = value.producer()
    own = FLOAT if producer is None or producer in single else HALF
    wanted = {_wanted(use.node, use.idx, single, opset) for use in value.uses()} | ({FLOAT} if value.is_graph_output() else set())
    return len(wanted - {None, own})


def _absorb(graph: ir.Graph, single: set[ir.Node], opset: int) -> None:
    """Takes nodes between those of float32 into float32 too, as long as that saves casts and costs no weights of twice the size."""
    changed = True
    while changed:
        changed = False
        for node in graph:
            if node in single or is_standard(node, *HEAVY) or not any(value.dtype == FLOAT for value in node.outputs):
                continue
            values = {value for value in (*node.inputs, *node.outputs) if value is not None and value.dtype == FLOAT}
            around = [value for value in values if not is_constant(value)]
            before = sum(_casts(value, single, opset) for value in around)
            if before > sum(_casts(value, single | {node}, opset) for value in around):
                single.add(node)
                changed = True


def _merge(model: ir.Model, floats: Sequence[ir.Node], single: set[ir.Node], opset: int, budget: int) -> None:
    """Takes stretches of float16 into float32, all but the one with the most weights, until the casts are within the budget."""
    values = [value for value in (*model.graph.inputs, *(each for node in floats for each in node.outputs)) if value.dtype == FLOAT]
    there = count_casts(model)
    for stretch in sorted(_stretches(floats, single), key=_weights)[:-1]:
        if there + sum(_casts(value, single, opset) for value in values) <= budget:
            break
        single |= stretch


def _stretches(floats: Sequence[ir.Node], single: Collection[ir.Node]) -> list[set[ir.Node]]:
    """The nodes outside of `single`, each set of them connected by what they hand on."""
    found: list[set[ir.Node]] = []
    left = set(floats).difference(single)
    for first in floats:
        if first not in left:
            continue
        stretch, open_ = {first}, [first]
        while open_:
            node = open_.pop()
            near = {use.node for value in node.outputs for use in value.uses()}
            near |= {producer for value in node.inputs if value is not None and (producer := value.producer()) is not None}
            new = (near & left) - stretch
            stretch |= new
            open_ += new
        left -= stretch
        found.append(stretch)
    return found


def _weights(nodes: Collection[ir.Node]) -> int:
    """Elements of the constants that nodes read."""
    return sum(math.prod(value.shape.numpy()) for node in nodes for value in node.inputs
               if value is not None and is_constant(value) and value.shape is not None)


def _convert(graph: ir.Graph, single: Collection[ir.Node], opset: int) -> None:
    """Gives every value its type, and casts it where a node takes another one."""
    values = [value for value in graph.inputs if value.dtype == FLOAT]
    values += [value for node in graph for value in node.outputs if value.dtype == FLOAT]
    weights = [value for value in graph.initializers.values() if is_constant(value) and value.dtype == FLOAT]
    wanted = {
        value: [(use.node, use.idx, _wanted(use.node, use.idx, single, opset)) for use in value.uses()] for value in (*values, *weights)
    }
    for value in weights:
        _convert_weight(graph, value, wanted[value])
    for value in values:
        producer = value.producer()
        own = FLOAT if producer is None or producer in single else HALF
        if producer is not None and own == HALF:
            _retype(producer)
            value.type = ir.TensorType(HALF)
        cast: ir.Value | None = None
        for node, index, dtype in wanted[value]:
            if dtype not in (None, own):
                cast = cast or _cast(graph, value, dtype)
                node.replace_input_with(index, cast)
        if own == HALF and value.is_graph_output():
            _keep_output(graph, value, cast or _cast(graph, value, FLOAT))


def _convert_weight(graph: ir.Graph, value: ir.Value, wanted: list[tuple[ir.Node, int, ir.DataType | None]]) -> None:
    source = stored(value)
    if not any(dtype == HALF for *_, dtype in wanted):
        return
    tensor = ir.LazyTensor(functools.partial(_rounded, source, str(value.name)), HALF, ir.Shape(source.shape.numpy()))
    if all(dtype != FLOAT for *_, dtype in wanted) and not value.is_graph_output():
        value.const_value, value.type = tensor, ir.TensorType(HALF)
        return
    converted = add_initializer(graph, tensor, f"{value.name}.float16")
    for node, index, dtype in wanted:
        if dtype == HALF:
            node.replace_input_with(index, converted)


def _rounded(source: ir.TensorProtocol, name: str) -> ir.Tensor:
    with np.errstate(over="ignore"):
        array = source.numpy().astype(np.float16)
    if not np.isfinite(array).all():
        raise GraphError(f"The weight '{name}' has values beyond 65,504, which float16 does not hold: take another precision.")
    return ir.Tensor(array)


def _retype(node: ir.Node) -> None:
    """Writes float16 into the attributes that say the type of an output."""
    if is_standard(node, "Cast"):
        node.attributes["to"] = ir.AttrInt64("to", int(HALF))
    elif is_standard(node, "ConstantOfShape"):
        filling = node.attributes.get("value")
        array = np.zeros(1, np.float16) if filling is None else filling.as_tensor().numpy().astype(np.float16)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A Cast of `value`, directly after the node that computes it."""
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_cast")
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{value.name}_{dtype.name.lower()}", value.shape, ir.TensorType(dtype)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        node.metadata_props.update(producer.metadata_props)
        node.name = producer.name  # whose module it belongs to
        graph.insert_after(producer, node)
    return output


def _keep_output(graph: ir.Graph, value: ir.Value, cast: ir.Value) -> None:
    """Makes `cast` the output of the graph, under the name and the shape that `value` had as such."""
    value.name, cast.name = f"{value.name}_half", value.name
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = cast
