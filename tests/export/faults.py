"""Packages with one thing wrong: hard-linked copies in which a graph, the manifest or a file is replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from runtime.manifest import NAME

Change = Callable[[onnx.ModelProto], None]


def copied(package: Path, to: Path) -> Path:
    """A copy that shares its files with the original: they may be replaced, not written to."""
    return Path(shutil.copytree(package, to, copy_function=os.link))


def edit_graph(package: Path, component: str, change: Change) -> None:
    name = f"{component}/model.onnx"
    model = onnx.load(package / name)
    change(model)
    _replace(package / name, model.SerializeToString())
    edit_manifest(package, lambda manifest: manifest["files"][name].update(bytes=(package / name).stat().st_size))


def edit_file(package: Path, name: str, change: Callable[[str], str]) -> None:
    text = (package / name).read_text(encoding="utf-8")
    changed = change(text)
    assert changed != text
    _replace(package / name, changed.encode())
    edit_manifest(package, lambda manifest: manifest["files"][name].update(bytes=len(changed.encode())))


def edit_manifest(package: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((package / NAME).read_text(encoding="utf-8"))
    change(manifest)
    _replace(package / NAME, json.dumps(manifest).encode())


def _replace(path: Path, data: bytes) -> None:
    path.unlink()  # the file itself belongs to the original too
    path.write_bytes(data)


# --- changes of a graph --------------------------------------------------------------------------------------------------------------


def weights(*names: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Replaces initializers; each must be there, and become another."""

    def apply(model: onnx.ModelProto) -> None:
        for name in names:
            tensor = _initializer(model, name)
            before = numpy_helper.to_array(tensor)
            after = change(before)
            assert not np.array_equal(before, after), name
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(after), name))

    return apply


def zeroed(*names: str) -> Change:
    return weights(*names, change=np.zeros_like)


def not_a_number(name: str) -> Change:
    def change(array: np.ndarray) -> np.ndarray:
        broken = array.copy()
        broken.flat[0] = np.nan
        return broken

    return weights(name, change=change)


def swapped(first: str, second: str) -> Change:
    """Exchanges two initializers of one shape."""

    def apply(model: onnx.ModelProto) -> None:
        one, other = _initializer(model, first), _initializer(model, second)
        assert list(one.dims) == list(other.dims)
        assert one.raw_data != other.raw_data
        one.name, other.name = second, first

    return apply


def silenced(value: str) -> Change:
    """Multiplies an input or output of the graph by zero."""

    def apply(model: onnx.ModelProto) -> None:
        graph, loud = model.graph, f"{value}.loud"
        graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "nothing"))
        producer = next((index for index, node in enumerate(graph.node) if value in node.output), None)
        if producer is None:
            for node in graph.node:
                node.input[:] = [loud if name == value else name for name in node.input]
            graph.node.insert(0, onnx.helper.make_node("Mul", [value, "nothing"], [loud]))
        else:
            node = graph.node[producer]
            node.output[:] = [loud if name == value else name for name in node.output]
            graph.node.insert(producer + 1, onnx.helper.make_node("Mul", [loud, "nothing"], [value]))

    return apply


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)
