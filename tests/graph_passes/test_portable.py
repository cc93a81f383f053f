"""The portable pipeline on the graphs of torch's exporters: the same function, less graph, nothing left to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import ops, session
from networks import NETWORKS, export_dynamo

from graph_passes.errors import GraphError
from graph_passes.files import load
from graph_passes.pipelines import CPU, PORTABLE, TARGETS, for_target
from graph_passes.step import run
from graph_passes.values import is_constant, nodes

Exported = Callable[[str, str], Path]

# Sizes that were not traced
SIZES = {"batch_size": 3, "height": 12, "width": 8, "sequence_length": 5}
BATCH_OF_ONE = {**SIZES, "batch_size": 1}
# What a graph of static shapes has no use for
DYNAMIC = {"Shape", "Size", "Expand", "ConstantOfShape", "Range", "NonZero", "Where"}

every_graph = pytest.mark.parametrize(("network", "exporter"), [(name, each) for each in ("dynamo", "torchscript") for name in NETWORKS])


def feeds(path: Path, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    arrays = {}
    for port in onnx.load(path, load_external_data=False).graph.input:
        kind = port.type.tensor_type
        shape = [size.dim_value or sizes[size.dim_param] for size in kind.shape.dim]
        arrays[port.name] = generator.normal(size=shape).astype(np.float32) if kind.elem_type == 1 else generator.integers(0, 60, shape)
    return arrays


def outputs(path: Path, sizes: dict[str, int] = SIZES, inputs: Path | None = None) -> list[np.ndarray]:
    return list(session(str(path)).run(None, feeds(inputs or path, sizes)))


def assert_equal(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Equal to 1e-6 of the largest value: a few roundings of float32 (6e-8), for the constants that numpy folded instead of the runtime."""
    for each, reference in zip(got, expected, strict=True):
        assert each.shape == reference.shape
        assert np.abs(each - reference).max() <= 1e-6 * np.abs(reference).max()


def ports(path: Path) -> list[tuple[str, int, list[int | str]]]:
    proto = onnx.load(path, load_external_data=False).graph
    kinds = [(port.name, port.type.tensor_type) for port in (*proto.input, *proto.output)]
    return [(name, kind.elem_type, [size.dim_param or size.dim_value for size in kind.shape.dim]) for name, kind in kinds]


@every_graph
def test_the_function_stays_and_the_graph_shrinks(network: str, exporter: str, exported: Exported, tmp_path: Path) -> None:
    source, out = exported(network, exporter), tmp_path / "out.onnx"
    model = load(source)
    before = nodes(model)
    run(model, PORTABLE)
    ir.save(model, out)
    onnx.checker.check_model(out, full_check=True)
    assert_equal(outputs(out), outputs(source))
    assert ports(out) == ports(source)
    assert nodes(model) < (0.5 if exporter == "dynamo" else 0.67) * before
    assert not ops(model).keys() & {"Constant", "Identity", "CastLike", "Dropout", "IsNaN", "SequenceAt", "SplitToSequence", "Pad"}
    for node in model.graph:
        assert not all(is_constant(value) for value in node.inputs), f"{node.name} is not folded"


@every_graph
def test_a_second_run_finds_nothing(network: str, exporter: str, exported: Exported, tmp_path: Path) -> None:
    model = load(exported(network, exporter))
    run(model, PORTABLE)
    first = ir.to_proto(model).SerializeToString(deterministic=True)
    ir.save(model, tmp_path / "out.onnx")
    for again in (model, load(tmp_path / "out.onnx")):
        assert {step.name: step.applied for step in run(again, PORTABLE) if step.applied} == {}
        assert ir.to_proto(again).SerializeToString(deterministic=True) == first


@every_graph
def test_nothing_dynamic_is_left_in_a_static_graph(network: str, exporter: str, exported: Exported, tmp_path: Path) -> None:
    source, out = exported(network, exporter), tmp_path / "out.onnx"
    shapes = {name: array.shape for name, array in feeds(source, BATCH_OF_ONE).items()}
    model = load(source)
    run(model, for_target("portable", shapes=shapes))
    ir.save(model, out)
    onnx.checker.check_model(out, full_check=True)
    for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
        assert value.shape is not None, value.name
        assert value.shape.is_static(), value
    kept = {"Where"} if network == "text_encoder" else set()
    assert not ops(model).keys() & (DYNAMIC - kept)
    assert_equal(outputs(out), outputs(source, BATCH_OF_ONE))
    assert {step.name for step in run(model, PORTABLE) if step.applied} == set()


def test_one_static_input_fixes_the_sizes_that_others_share(exported: Exported) -> None:
    model = load(exported("unet", "dynamo"))
    run(model, for_target("portable", shapes={"sample": (1, 4, 8, 8)}))
    assert [str(value.shape) for value in model.graph.inputs] == ["[1,4,8,8]", "[1]", "[1,sequence_length,8]"]


def test_two_exports_of_one_module_give_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    files = []
    for path in (exported("text_encoder", "dynamo"), export_dynamo(NETWORKS["text_encoder"](), tmp_path / "again.onnx")):
        model = load(path)
        run(model, PORTABLE)
        files.append(ir.to_proto(model).SerializeToString())
    assert files[0] == files[1]


@every_graph
def test_nothing_of_the_exporting_machine_is_left(network: str, exporter: str, exported: Exported) -> None:
    model = load(exported(network, exporter))
    run(model, PORTABLE)
    proto = ir.to_proto(model)
    assert (proto.producer_name, proto.producer_version, proto.doc_string) == ("handheld-diffusion", "", "")
    content = proto.SerializeToString()
    for word in (b".py", b"site-packages", b"torch", str(Path(__file__).parent).encode(), str(Path.home()).encode() + b"/"):
        assert word not in content, word
    assert not proto.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_names_say_where_a_node_belongs(exported: Exported) -> None:
    for exporter in ("dynamo", "torchscript"):
        model = load(exported("text_encoder", exporter))
        run(model, PORTABLE)
        names = [str(node.name).replace("/", ".") for node in model.graph]
        assert len(set(names)) == len(names)
        assert [name for name in names if "layers.1.mlp.fc1" in name] == [
            "model.encoder.layers.1.mlp.fc1.MatMul",
            "model.encoder.layers.1.mlp.fc1.Add",
        ]
        # the old exporter keeps one of several equal biases itself
        assert "model.encoder.layers.1.mlp.fc1.bias" in model.graph.initializers or exporter == "torchscript"
        for node in model.graph:
            assert all(value.is_graph_output() or value.name == f"{node.name}_output_{index}" for index, value in enumerate(node.outputs))


def test_attention_of_the_new_exporter_becomes_what_was_written(exported: Exported) -> None:
    model = load(exported("unet", "dynamo"))
    run(model, PORTABLE)
    softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
    assert len(softmaxes) == 8  # self- and cross-attention: one block down, one in the middle, two up
    for softmax in softmaxes:
        scores = softmax.inputs[0].producer()
        keys = scores.inputs[1].producer().inputs[0].producer()
        assert (scores.op_type, keys.op_type) == ("MatMul", "Transpose")
        assert list(keys.attributes["perm"].as_ints()) == [0, 2, 3, 1]
        assert keys.inputs[0].producer().op_type == "Reshape"


def test_targets_without_a_pipeline_are_refused_by_name() -> None:
    assert list(TARGETS) == ["portable", "cpu", "nnapi", "coreml", "cuda", "qnn", "webgpu", "xnnpack"]
    assert (TARGETS["portable"], TARGETS["cpu"]) == (PORTABLE, CPU)
    known = ", ".join(TARGETS)
    for target in ("rocm", "toaster"):
        with pytest.raises(GraphError, match=rf"^There is no pipeline for the target '{target}'\. There is one for {known}\.$"):
            for_target(target)
