"""Small graphs in ONNX's text form, and what it means that a pass leaves a graph's function as it was."""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx.reference import ReferenceEvaluator

from graph_passes.passes.constants import LIFT_CONSTANTS
from graph_passes.passes.shapes import INFER_SHAPES
from graph_passes.step import Pass, run

KINDS = {"f": "float", "i": "int64"}
SIZES = {"N": 3, "M": 5}  # what the dynamic dimensions of the test graphs are when they run


def graph(body: str, inputs: str, outputs: str = "float[] y", initializers: str = "", opset: int = 20) -> ir.Model:
    """A model from ONNX's text form. The rank of an output may be left out: it is inferred."""
    text = f'<ir_version: 9, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) <{initializers}> {{ {body} }}'
    model = ir.from_onnx_text(text)
    for value in model.graph.outputs:
        value.shape = None
    run(model, (LIFT_CONSTANTS, INFER_SHAPES))
    return model


def weight(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def with_weights(body: str, inputs: str, **weights: np.ndarray) -> ir.Model:
    declared = ", ".join(f"{KINDS[array.dtype.kind]}{list(array.shape)} {name}" for name, array in weights.items())
    model = graph(body, f"{inputs}, {declared}" if weights else inputs)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(weights[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    return model


def read_late(model: ir.Model, name: str) -> list[str]:
    """Makes an initializer one that is read when it is needed; returns the list that gets its name each time."""
    value, reads = model.graph.initializers[name], []
    tensor = value.const_value

    def read() -> ir.TensorProtocol:
        reads.append(name)
        return tensor

    value.const_value = ir.LazyTensor(read, tensor.dtype, tensor.shape)
    return reads


def copy(model: ir.Model) -> ir.Model:
    return ir.from_proto(ir.to_proto(model))


def ops(model: ir.Model) -> dict[str, int]:
    """How many nodes of each type there are."""
    return dict(Counter(node.op_type for node in model.graph))


def feed(model: ir.Model) -> dict[str, np.ndarray]:
    """Seeded inputs, in float64 where the graph takes floats: exactly representable in float32."""
    feeds = {}
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        generator = np.random.default_rng(zlib.crc32((value.name or "").encode()))
        shape = [size if isinstance(size, int) else SIZES[size.value] for size in value.shape]
        dtype = value.dtype.numpy()
        if dtype.kind == "f":
            feeds[value.name] = generator.normal(size=shape).astype(dtype).astype(np.float64 if dtype == np.float32 else dtype)
        elif dtype.kind == "b":
            feeds[value.name] = np.asarray(generator.random(shape) < 0.5)
        else:
            feeds[value.name] = generator.integers(0, 3, shape).astype(dtype)
    return feeds


def in_double(model: ir.Model) -> onnx.ModelProto:
    """The model with float64 in the place of float32: inputs, outputs, initializers and casts."""
    proto = ir.to_proto(model)
    single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    for port in (*proto.graph.input, *proto.graph.output):
        if port.type.tensor_type.elem_type == single:
            port.type.tensor_type.elem_type = double
    del proto.graph.value_info[:]
    for tensor in proto.graph.initializer:
        if tensor.data_type == single:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == single:
                attribute.i = double
    return proto


def run_in_double(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(ReferenceEvaluator(in_double(model)).run(None, feeds))


def session(model: ir.Model | str) -> onnxruntime.InferenceSession:
    """ONNX Runtime as it stands, with no rewriting of its own that could hide a difference."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    # weights that are packed before the first run are multiplied in another order than those that a node computes
    options.add_session_config_entry("session.disable_prepacking", "1")
    source = model if isinstance(model, str) else ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_in_runtime(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    singles = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in feeds.items()}
    return list(session(model).run(None, singles))


def applied(model: ir.Model, *passes: Pass) -> list[int]:
    """Runs the passes and returns their counts, after holding that the graph computes what it did.

    The oracle is the graph as it was, in onnx's reference implementation in float64: there the rewritten graph must agree to the last
    bits, and in ONNX Runtime in float32 as well as the original does.
    """
    before = copy(model)
    counts = [step.applied for step in run(model, passes)]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [(value.name, value.dtype) for value in model.graph.inputs] == [(value.name, value.dtype) for value in before.graph.inputs]
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [(value.name, value.dtype) for value in before.graph.outputs]
    feeds = feed(before)
    oracle = run_in_double(before, feeds)
    for expected, got in zip(oracle, run_in_double(model, feeds), strict=True):
        assert expected.shape == got.shape
        np.testing.assert_allclose(got, expected, rtol=1e-14, atol=1e-14)
    for expected, got, exact in zip(run_in_runtime(before, feeds), run_in_runtime(model, feeds), oracle, strict=True):
        assert expected.dtype == got.dtype
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)
    return counts
