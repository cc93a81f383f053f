"""Sessions: what runs, what is refused and how it is said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from runtime import session
from runtime.errors import InputError, Unavailable
from runtime.manifest import Package
from runtime.providers import provider
from runtime.session import Sessions, custom_ops_library

IDS = {"input_ids": np.zeros((1, 77), np.int64)}


@pytest.fixture
def sessions(tiny_package: Path) -> Iterator[Sessions]:
    with Sessions(Package.open(tiny_package), provider("cpu"), threads=1) as opened:
        yield opened


def test_outputs_have_names_and_inputs_are_cast(sessions: Sessions) -> None:
    outputs = sessions.run("text_encoder", {"input_ids": np.zeros((1, 77), np.int16)})
    assert outputs["last_hidden_state"].shape == (1, 77, 96)
    np.testing.assert_array_equal(outputs["last_hidden_state"], sessions.run("text_encoder", IDS)["last_hidden_state"])


def test_components_load_once_and_can_be_freed(sessions: Sessions) -> None:
    assert sessions.loaded == ()
    first = sessions.load("text_encoder")
    sessions.run("text_encoder", IDS)
    assert sessions.load("text_encoder") is first
    assert sessions.load_seconds["text_encoder"] > 0
    sessions.free("text_encoder")
    assert sessions.loaded == ()
    assert sessions.load("text_encoder") is not first


def three_nodes(model: onnx.ModelProto) -> None:
    """In place of the text encoder: its outputs are sine and cosine of the ids."""
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["input_ids"], ["angle"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Sin", ["angle"], [model.graph.output[0].name]),
            helper.make_node("Cos", ["angle"], [model.graph.output[1].name]),
        ]
    )
    for output in model.graph.output:
        output.type.tensor_type.shape.CopyFrom(model.graph.input[0].type.tensor_type.shape)


def test_every_node_is_assigned(edit_graph: Callable[..., Path]) -> None:
    with Sessions(Package.open(edit_graph("text_encoder", three_nodes)), provider("cpu")) as sessions:
        assert sessions.assigned("text_encoder") == {"CPUExecutionProvider": 3}


@pytest.mark.parametrize(
    ("component", "inputs", "sentence"),
    [
        ("text_encoder", {}, "'text_encoder' needs the input 'input_ids', which was not given"),
        ("text_encoder", {**IDS, "mask": np.zeros(1)}, "'text_encoder' has no input 'mask': it takes 'input_ids'"),
        ("text_encoder", {"input_ids": np.zeros((1, 78))}, "'text_encoder' does not run with input_ids [1, 78]: "),
        ("text_encoder", {"input_ids": np.zeros(77)}, "'text_encoder' takes 'input_ids' as [batch_size, sequence_length], not as [77]"),
        ("text_encoder", {"input_ids": np.full((1, 77), 10**6)}, "'text_encoder' does not run with input_ids [1, 77]: "),
        ("text_decoder", {}, "has no component 'text_decoder': it has text_encoder, unet,"),
    ],
)
def test_wrong_inputs_are_told(component: str, inputs: dict[str, Any], sentence: str, sessions: Sessions) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        sessions.run(component, inputs)


def test_a_graph_that_is_none_is_named(package_copy: Path) -> None:
    file = package_copy / "unet" / "model.onnx"
    file.write_bytes(b"x" * file.stat().st_size)
    with (
        Sessions(Package.open(package_copy), provider("cpu")) as sessions,
        pytest.raises(InputError, match=r"ONNX Runtime can't load 'unet' on cpu: .*(Protobuf parsing failed|No graph was found)"),
    ):
        sessions.load("unet")


def custom(model: onnx.ModelProto) -> None:
    """The output goes through an op that nobody has."""
    output = model.graph.output[0].name
    producer = next(node for node in model.graph.node if output in node.output)
    producer.output[list(producer.output).index(output)] = "before"
    model.graph.node.append(helper.make_node("Unknown", ["before"], [output], domain="handheld"))
    model.opset_import.append(helper.make_opsetid("handheld", 1))


def test_a_custom_op_without_its_library_is_explained(edit_graph: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package.open(edit_graph("text_encoder", custom))
    monkeypatch.delenv("HANDHELD_OPS_LIBRARY", raising=False)
    monkeypatch.setattr(session, "_BUILT_LIBRARY", Path("nowhere"))
    with (
        Sessions(package, provider("cpu")) as sessions,
        pytest.raises(InputError, match=r"can't load 'text_encoder' on cpu: .*handheld.*build their library with 'make kernels'\)"),
    ):
        sessions.load("text_encoder")


def test_a_library_that_is_none_is_named(tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libhandheld_ops.so"
    monkeypatch.setenv("HANDHELD_OPS_LIBRARY", str(library))
    with pytest.raises(InputError, match=r"HANDHELD_OPS_LIBRARY is '.*libhandheld_ops.so', and there is no such file"):
        custom_ops_library()
    library.write_bytes(b"no library")
    assert custom_ops_library() == library
    with (
        Sessions(Package.open(tiny_package), provider("cpu")) as sessions,
        pytest.raises(InputError, match=r"can't load 'text_encoder' on cpu: .*\(with the custom ops of '.*libhandheld_ops.so'\)"),
    ):
        sessions.load("text_encoder")


def test_the_built_library_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDHELD_OPS_LIBRARY", raising=False)
    built = tmp_path / "libhandheld_ops.so"
    monkeypatch.setattr(session, "_BUILT_LIBRARY", built)
    assert custom_ops_library() is None
    built.touch()
    assert custom_ops_library() == built


def test_a_provider_that_onnx_runtime_drops_in_silence_is_unavailable(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with CUDA where the driver is missing: the session then has the CPU only."""
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda _self: [])
    with pytest.raises(Unavailable, match="the execution provider 'cpu' is not available here"):
        sessions.load("text_encoder")


def test_negative_threads_are_refused(tiny_package: Path) -> None:
    with pytest.raises(InputError, match="-1 threads are not possible: give a positive number, or 0 for one per core"):
        Sessions(Package.open(tiny_package), provider("cpu"), threads=-1)


def test_a_tokenizer_is_read_once(tiny_package: Path) -> None:
    with Sessions(Package.open(tiny_package), provider("cpu")) as sessions:
        first = sessions.tokenizer("tokenizer")
        assert sessions.tokenizer("tokenizer") is first
        assert sessions.load_seconds["tokenizer"] > 0
