"""What the tests of every custom op share: models of one op, ONNX Runtime with the kernels and without, and whole graphs against torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from graph_passes.passes.attach_bodies import attach_bodies
from runtime.compare import snr_db

from ..architectures import Traced

UNIT = 2.0**-23  # of the last place of a float32 of 1
OPSETS = range(14, 24)  # that the bodies are written for
ISAS = ("portable", "avx2", "avx512", "avx512bf16", "neon", "neonfp16", "neonbf16")  # that kernels are written for
BFLOAT16_ISAS = ("avx512bf16", "neonbf16")  # whose products have bfloat16 operands; the others multiply floats
Shape = tuple[int | str | None, ...] | None  # strings are dynamic dimensions, None is not known


def one_op(op_type: str, inputs: Mapping[str, Shape | onnx.TensorProto], output: Shape, opset: int = 20,
           dtype: int = onnx.TensorProto.FLOAT, **attributes: Any) -> onnx.ModelProto:  # fmt: skip
    """A model of one custom op with its body. `inputs` are the op's, in their order: tensors are weights, shapes are fed."""
    weights = [value for value in inputs.values() if isinstance(value, onnx.TensorProto)]
    ports = [helper.make_tensor_value_info(name, dtype, value) for name, value in inputs.items() if not isinstance(value, onnx.TensorProto)]
    node = helper.make_node(op_type, list(inputs), ["y"], domain="handheld", **attributes)
    graph = helper.make_graph([node], "g", ports, [helper.make_tensor_value_info("y", dtype, output)], weights)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("handheld", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))
    attach_bodies(model)
    return ir.to_proto(model)


def without_body(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model for the kernel alone, which must say itself what it refuses and infer its own shape."""
    del model.functions[:]
    return model


def copy(model: ir.Model) -> ir.Model:
    return ir.from_proto(ir.to_proto(model))


def without_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the shape of its output, which is to be inferred."""
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def inferred(model: onnx.ModelProto) -> list[int | str]:
    """The shape that ONNX infers for the output from the body."""
    made = onnx.shape_inference.infer_shapes(without_shape(model), strict_mode=True, data_prop=True)
    return [size.dim_param or size.dim_value for size in made.graph.output[0].type.tensor_type.shape.dim]


def session(model: onnx.ModelProto | ir.Model, library: Path | None) -> onnxruntime.InferenceSession:
    """With the kernels of `library`, or with the bodies where it is None."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def runs_here(isa: str, model: onnx.ModelProto, library: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Asks the kernels for an instruction set, and holds that they refuse it where they say themselves that the machine has it not."""
    monkeypatch.setenv("HANDHELD_ISA", "none")
    with pytest.raises(Exception, match="this machine has kernels for: portable") as refusal:
        session(model, library)
    here = str(refusal.value).rpartition("for: ")[2].strip().split(", ")
    monkeypatch.setenv("HANDHELD_ISA", isa)
    if isa in here:
        return True
    with pytest.raises(Exception, match=f"HANDHELD_ISA is '{isa}', and this machine has kernels for: portable"):
        session(model, library)
    return False


def hold_that_the_library_decides(model: onnx.ModelProto, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a file runs on the kernel where the library is registered, and on the body where it is not."""
    monkeypatch.setenv("HANDHELD_ISA", "none")  # refused where there is a kernel, and only there
    session(model, None)
    with pytest.raises(Exception, match="HANDHELD_ISA is 'none'"):
        session(model, library)


def before_and_after(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The outputs of a graph and of what a rule made of it, which is held to be valid, on the bodies."""
    attach_bodies(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    return zip(session(before, None).run(None, feeds), session(after, None).run(None, feeds), strict=True)


def hold_against_torch(model: ir.Model, traced: Traced, library: Path, least: float = 90) -> None:
    """That a rewritten graph is what torch computes, with an SNR of `least` dB: in one file, with the kernels and without."""
    attach_bodies(model)
    inputs, expected = traced.arrays()
    for each in (None, library):
        (got,) = session(model, each).run(None, inputs)
        assert snr_db(expected, got) >= least
