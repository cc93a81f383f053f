"""Every activation -> DequantizeLinear(QuantizeLinear(activation)) in 16 bits, every weight -> DequantizeLinear of 8 bits: the QDQ form

Runtimes that compute in integers, QNN's above all, read it as what their operators take and give; others compute in float32 what stands
there. An activation of magnitude m on the measured trajectories is round(x / s) + 32768 with s = 2 REACH m / 65535, or round(x / s) with
half of that s where it was never negative; of a softmax, a sigmoid and a hyperbolic tangent the ends are known. Weights are symmetric, with
the scale of least square error (see quantize_weights): one to each output channel of Conv, Gemm and MatMul. A bias is int32 at the scale
of the sums that it is added to. LayerNormalization's gains, which are few, are int16.

The NPU of a Snapdragon, HTP, computes in these integers what the CPU's provider computes in float32, and asks for more:
- MatMul's weights have one scale; those of Conv and Gemm may have one to each channel (see rules/multiply_flat.py).
- LayerNormalization's gains are int16 or uint8, InstanceNormalization's 8 bits.
- A product of two activations has 31 to 49 dB alone, as if its second one had 8 bits, and QNN 2.51 may compile what follows it in a graph
  so that it reads what nobody wrote. So attention's scores and its softmax stay float, which HTP computes as float16.

16-bit integers are ONNX's from opset 21 on; before, they are com.microsoft's.
"""

from __future__ import annotations

import functools
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graph_passes.contrib.nodes import DOMAIN, insert
from graph_passes.errors import GraphError
from graph_passes.passes.half import FLOAT, Measure, sine_arguments
from graph_passes.passes.quantize_weights import quantized
from graph_passes.rule import emit
from graph_passes.step import Outcome, Pass
from graph_passes.values import add_initializer, add_made, graph_of, integer, is_constant, is_standard, lengths, stored

STEPS = 65535
# Other prompts and seeds reach further than those that were measured, and to the other side: of the values of the embedded model's U-Net a
# fifth exceed three trajectories' ranges by more than a quarter, and what is clipped costs far more than the two of 16 bits that this does
REACH = 2.0
BOUNDED = {"Sigmoid": (2.0**-16, 0), "Softmax": (2.0**-16, 0), "Tanh": (2.0**-15, 1 << 15)}  # scale and zero point, those of QNN's own
# What gives numbers of its input gives them at its input's scale
VIEWS = ("Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
NORMS = ("GroupNormalization", "InstanceNormalization", "LayerNormalization")
ELEMENTWISE = ("Add", "Div", "Mul", "Sub", "Where")
Parameters = tuple[ir.Value, ir.Value, float]  # the scale and the zero point as constants, and the scale


def quantize_static(measure: Measure | None, for_htp: bool = False) -> Pass:
    """The pass, with what tells the ranges of a graph's values; without it, running it is an error. `for_htp`: as a Snapdragon takes it."""
    return Pass("quantize to 16 bits with weights of 8", functools.partial(_apply, measure=measure, for_htp=for_htp))


def _apply(model: ir.Model, measure: Measure | None, for_htp: bool) -> Outcome:
    """Returns how many values it quantized. Errors: GraphError where a value was not measured, or is not finite."""
    if measure is None:
        raise GraphError("Activations are quantized by their ranges, and nothing measures them here: take python -m export.")
    graph = model.graph
    ranges = measure(model)
    sines = {each for node in graph for each in sine_arguments(node)}
    exact = {value for node in sines for value in (*node.inputs, *node.outputs) if value is not None}
    exact -= {value for node in sines if is_standard(node, "Sin", "Cos") for value in node.outputs}
    known: dict[ir.Value, Parameters] = {}
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.dtype != FLOAT or value in exact or not (value.uses() or value.is_graph_output()):
            continue
        if for_htp and _stays_float(value, known):
            continue
        above = value.producer()
        source = above.inputs[0] if above is not None and is_standard(above, *VIEWS) else None
        if source not in known:
            source = None
        known[value] = known[source] if source is not None else _parameters(graph, value, ranges.get(value.name or ""))
    weights = sum(_quantize_constants(node, known, for_htp) for node in list(graph))
    for value, parameters in known.items():
        _quantize(graph, value, parameters)
    return Outcome(len(known), (f"{len(known)} activations in 16 bits, {weights} constants",))


def _stays_float(value: ir.Value, known: Collection[ir.Value]) -> bool:
    """Whether a value is a product of two quantized activations, what a softmax reads or gives, or a view of such a one: ONNX Runtime moves
    a QuantizeLinear behind a view before it, and so back to the product."""
    above = value.producer()
    if above is None:
        return False
    if is_standard(above, "MatMul"):
        return all(each in known for each in above.inputs)
    if is_standard(above, *VIEWS):
        return above.inputs[0] not in known
    return is_standard(above, "Softmax") or any(is_standard(use.node, "Softmax") for use in value.uses())


def _parameters(graph: ir.Graph, value: ir.Value, measured: tuple[float, float] | None) -> Parameters:
    above = value.producer()
    if above is not None and is_standard(above, *BOUNDED):
        return _parameters_of(graph, str(value.name), *BOUNDED[above.op_type])
    if measured is None or not np.isfinite(measured).all():
        why = "was not measured" if measured is None else "is not finite"
        raise GraphError(f"The range of '{value.name}' {why}: it cannot be quantized.")
    limit = REACH * max(map(abs, measured))
    return _between(graph, str(value.name), -limit if measured[0] < 0 else 0.0, limit)


def _between(graph: ir.Graph, name: str, low: float, high: float) -> Parameters:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / STEPS or 1.0))
    return _parameters_of(graph, name, scale, int(np.clip(np.rint(-low / scale), 0, STEPS)))


def _parameters_of(graph: ir.Graph, name: str, scale: float, zero: int) -> Parameters:
    return (add_initializer(graph, ir.tensor(np.array(scale, np.float32)), f"{name}.scale"),
            add_initializer(graph, ir.tensor(np.array(zero, np.uint16)), f"{name}.zero"), scale)


def _quantize(graph: ir.Graph, value: ir.Value, parameters: Parameters) -> None:
    """Puts Quantize and Dequantize between a value and all that read it."""
    scale, zero, _ = parameters
    producer, uses = value.producer(), list(value.uses())
    codes = ir.node("QuantizeLinear", [value, scale, zero], domain=DOMAIN, name=f"{value.name}/QuantizeLinear")
    back = ir.node("DequantizeLinear", [codes.outputs[0], scale, zero], domain=DOMAIN, name=f"{value.name}/DequantizeLinear")
    graph.opset_imports[DOMAIN] = 1
    for node, dtype in ((codes, ir.DataType.UINT16), (back, FLOAT)):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = node.name, ir.TensorType(dtype), value.shape
    if producer is None:
        graph.insert_before(graph[0], [codes, back])
    else:
        graph.insert_after(producer, [codes, back])
    for use in uses:
        use.node.replace_input_with(use.idx, back.outputs[0])
    if value.is_graph_output():
        back.outputs[0].name, value.name = value.name, f"{value.name}_exact"
        graph.outputs[list(graph.outputs).index(value)] = back.outputs[0]


def _quantize_constants(node: ir.Node, known: dict[ir.Value, Parameters], for_htp: bool) -> int:
    """Quantizes the constants that a node reads beside an activation that is quantized; returns how many."""
    graph, count = node.graph, 0
    assert isinstance(graph, ir.Graph)
    activation = next((known[value] for value in node.inputs if value is not None and value in known), None)
    if activation is None:
        return 0
    scales: ir.Value | None = None
    for index, value in enumerate(node.inputs):
        if not is_constant(value) or value.dtype != FLOAT:
            continue
        if index == 1 and is_standard(node, "LayerNormalization"):
            scales = _gains(node, value)
        elif index == 1 and is_standard(node, "Conv", "Gemm", "MatMul", *NORMS):
            scales = _weight(node, index, value, _channels(node, not for_htp))
        elif index == 2 and is_standard(node, "Conv", "Gemm", *NORMS) and scales is not None:
            _bias(node, value, activation[2], scales)
        elif is_standard(node, *ELEMENTWISE, "MatMul", "Concat"):
            _constant(node, index, value)
        else:
            continue
        count += 1
    return count


def _channels(node: ir.Node, matmul: bool) -> int | None:
    """The axis of a weight along which its scales are; None for one scale to all."""
    if is_standard(node, "MatMul"):
        return 1 if matmul and len(lengths(stored(node.inputs[1]))) == 2 else None
    if is_standard(node, "Gemm"):
        return 0 if integer(node, "transB", 0) else 1
    return 0 if is_standard(node, "Conv") else None


def _weight(node: ir.Node, index: int, value: ir.Value, axis: int | None) -> ir.Value:
    """int8, with scales along an axis; returns the scales."""
    graph, shape = graph_of(node), lengths(stored(value))
    first = axis or 0
    moved = (shape[first], *(size for place, size in enumerate(shape) if place != first))
    many = () if axis is None else (shape[axis],)

    def rows(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, first, 0).reshape(*(many or (1,)), -1)

    def back(codes: np.ndarray) -> np.ndarray:
        return np.moveaxis(codes.reshape(moved), 0, first)

    codes, scales = quantized(graph, value, rows, 8, many, back, shape, ir.DataType.INT8)
    result = emit(node, "DequantizeLinear", [codes, scales], {} if axis is None else {"axis": axis}, suffix="_weight")
    result.type, result.shape = value.type, value.shape
    node.replace_input_with(index, result)
    return scales


def _gains(node: ir.Node, value: ir.Value) -> ir.Value:
    """int16, symmetric, with one scale, which it returns."""
    graph, array = graph_of(node), stored(value).numpy()
    step = np.float32(np.abs(array).max() / np.iinfo(np.int16).max or 1.0)
    codes = add_initializer(graph, ir.tensor(np.rint(array / step).astype(np.int16)), f"{value.name}.codes")
    scale = add_initializer(graph, ir.tensor(np.array(step)), f"{value.name}.scales")
    back = insert(node, "DequantizeLinear", [codes, scale], {}, f"{node.name}_gains").outputs[0]
    back.type, back.shape = value.type, value.shape
    node.replace_input_with(1, back)
    return scale


def _bias(node: ir.Node, value: ir.Value, activation: float, weights: ir.Value) -> None:
    """int32 at the scale of the products, which is that of the activation times those of the weights; at a larger one where it would not
    fit, as beside a norm's small input."""
    graph, source, factors = graph_of(node), stored(value), stored(weights)
    many = lengths(factors)

    def scales() -> ir.Tensor:
        least = np.abs(source.numpy()).max() / 2.0**30
        return ir.Tensor(np.maximum(factors.numpy() * activation, least).astype(np.float32))

    def codes() -> ir.Tensor:
        return ir.Tensor(np.rint(source.numpy().astype(np.float64) / scales().numpy()).astype(np.int32))

    inputs = [add_made(graph, f"{value.name}.codes", codes, ir.DataType.INT32, lengths(source)),
              add_made(graph, f"{value.name}.scales", scales, FLOAT, many)]
    result = emit(node, "DequantizeLinear", inputs, {"axis": 0} if many else {}, suffix="_bias")
    result.type, result.shape = value.type, value.shape
    node.replace_input_with(2, result)


def _constant(node: ir.Node, index: int, value: ir.Value) -> None:
    """16 bits, as an activation."""
    graph, array = graph_of(node), stored(value).numpy()
    scale, zero, step = _between(graph, str(value.name), float(array.min()), float(array.max()))
    codes = np.clip(np.rint(array / np.float64(step)) + float(stored(zero).numpy()), 0, STEPS).astype(np.uint16)
    constant = add_initializer(graph, ir.tensor(codes), f"{value.name}.codes")
    back = insert(node, "DequantizeLinear", [constant, scale, zero], {}, f"{node.name}_constant_{index}").outputs[0]
    back.type, back.shape = value.type, value.shape
    node.replace_input_with(index, back)
