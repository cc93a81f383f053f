"""`runtime.onnx_file` reads what the onnx package reads, from the bytes alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime import onnx_file
from runtime.errors import InputError


def external(name: str, location: str, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[length // 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def saved(path: Path, nodes: list[onnx.NodeProto], initializers: list[TensorProto], **others: object) -> Path:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("handheld", 3)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, **others).SerializeToString())
    return path


def test_structure_of_a_file(tmp_path: Path) -> None:
    """External data hides in initializers, in attributes, in the graphs of attributes and in functions: all of them are found."""
    branch = helper.make_graph([helper.make_node("Neg", ["w2"], ["n"])], "b", [], [], [external("w2", "branch.bin", 0, 8)])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=external("c", "constant.bin", 16, 16)),
        helper.make_node("If", ["p"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Geglu", ["x"], ["g"], domain="handheld"),
        helper.make_node("Geglu", ["g"], ["y"], domain="handheld"),
    ]
    body = [helper.make_node("Constant", [], ["v"], value=external("v", "function.bin", 0, 4)), helper.make_node("Add", ["a", "v"], ["b"])]
    function = helper.make_function("handheld", "Geglu", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    weights = [external("w", "weights.bin", 64, 32), external("w3", "weights.bin", 0, 8), numpy_helper.from_array(np.ones(9), "inline")]
    found = onnx_file.read(saved(tmp_path / "m.onnx", nodes, weights, functions=[function]))
    assert found.opsets == {"": 20, "handheld": 3}
    assert found.operators == Counter({("", "Constant"): 1, ("", "If"): 1, ("", "Neg"): 2, ("handheld", "Geglu"): 2})
    assert found.external == {"weights.bin": 96, "constant.bin": 32, "branch.bin": 8, "function.bin": 4}


@pytest.mark.parametrize(("embed_mode", "external"), [(0, {"unet_qnn.bin": 1}), (1, {})])
def test_binary_of_a_compiled_graph(tmp_path: Path, embed_mode: int, external: dict[str, int]) -> None:
    """In a file of its own, which must then be there, or embedded: then the attribute is not its name but the binary, and no text."""
    context = "unet_qnn.bin" if embed_mode == 0 else b"\xff\xfe\x00"
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=embed_mode, ep_cache_context=context)
    found = onnx_file.read(saved(tmp_path / "m.onnx", [node], []))
    assert found.operators == Counter({("com.microsoft", "EPContext"): 1})
    assert found.external == external


def test_every_truncation_is_an_error_or_still_a_prefix_of_whole_fields(tmp_path: Path) -> None:
    """A file that is cut anywhere never reads as the whole model, and never raises anything but the one error."""
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], name="sum")]
    whole = saved(tmp_path / "m.onnx", nodes, [numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")])
    data, complete = whole.read_bytes(), onnx_file.read(whole)
    for length in range(len(data)):
        (tmp_path / "cut.onnx").write_bytes(data[:length])
        try:
            found = onnx_file.read(tmp_path / "cut.onnx")
        except InputError as error:
            assert "is no ONNX model" in str(error)  # noqa: PT017  # most, but not all, lengths raise
        else:
            assert found != complete


def test_negative_offset_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "m.onnx", [helper.make_node("Neg", ["x"], ["y"])], [external("w", "weights.bin", -8, 16)])
    with pytest.raises(InputError, match=r"external data of 'weights.bin' at -8 with 16 bytes"):
        onnx_file.read(file)


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x00" * 64])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"'m.onnx' is no ONNX model"):
        onnx_file.read(tmp_path / "m.onnx")
