"""ONNX files in and out: checked before they are read, weights mapped and copied tensor by tensor, and whole or absent at the end"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from graph_passes.errors import GraphError

OLDEST_OPSET, NEWEST_OPSET = 13, 23
EXTERNAL_FROM = 1 << 20  # bytes of weights in all from which they get a file of their own
TENSOR_EXTERNAL_FROM = 1 << 10  # bytes of one tensor from which it goes there: shapes and scalars stay readable in the graph
PAGE, ALIGNED_FROM = 4096, 64 << 10  # tensors from this size on begin at a page: kernels read them where the file is mapped


def load(path: Path) -> ir.Model:
    """Reads an ONNX file; its external data stays on disk, mapped.

    Errors: GraphError where it is no ONNX model, not valid, of an opset that the passes do not know, or where its external data is
    missing, too short, or outside its folder.
    """
    if not path.is_file():
        raise GraphError(f"{path} is a folder: name the ONNX file in it." if path.is_dir() else f"There is no file {path}.")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise GraphError(f"{path} cannot be read: {error.strerror or error}.") from None
    except Exception:  # protobuf's DecodeError, which is no part of onnx's interface
        raise GraphError(f"{path} is not an ONNX file, or only a part of one.") from None
    if not proto.ir_version or not proto.HasField("graph"):
        raise GraphError(f"{path} is not an ONNX file, or only a part of one.")
    opset = next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), None)
    if opset is None or not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise GraphError(f"{path} has opset {opset}; the passes know {OLDEST_OPSET} to {NEWEST_OPSET}. Export it at one of those.")
    model = ir.from_proto(proto)
    folder = path.absolute().parent
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, folder)
    for tensor in external_tensors(model):
        _check_external(tensor, folder)
    try:
        onnx.checker.check_model(os.fspath(path))
    except onnx.checker.ValidationError as error:
        raise GraphError(f"{path} is not a valid model: {str(error).splitlines()[0]}") from None
    return model


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """The initializers that lie in other files."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _check_external(tensor: ir.ExternalTensor, folder: Path) -> None:
    """A location is relative and stays in the folder, the file is no link, and it holds what the graph says."""
    location = Path(tensor.location)
    file = folder / location
    if location.is_absolute() or ".." in location.parts:
        raise GraphError(f"The external data of {tensor.name!r} is at {str(location)!r}, outside the model's folder, and is not read.")
    if not file.resolve().is_relative_to(folder.resolve()) or file.is_symlink():
        raise GraphError(f"The external data file {file} is a link, and is not read. Copy the file itself there.")
    if not file.is_file():
        raise GraphError(f"The external data file {file} is missing. It belongs beside the model.")
    if file.stat().st_nlink > 1:
        raise GraphError(f"The external data file {file} has several hard links, and is not read. Copy the file itself there.")
    end = (tensor.offset or 0) + tensor.nbytes
    if (tensor.offset or 0) < 0 or (tensor.length is not None and tensor.length != tensor.nbytes):
        raise GraphError(f"{tensor.name!r} takes {tensor.length} bytes of {location}, but its shape needs {tensor.nbytes}.")
    size = file.stat().st_size
    if size < end:
        raise GraphError(f"The external data file {file} is truncated: it has {size} bytes, but {tensor.name!r} ends at {end}.")


def data_name(path: Path) -> str:
    """The name of the external data file of a model."""
    return f"{path.name}_data"


def check_free(path: Path, force: bool) -> None:
    """Errors: GraphError where something is at `path` already, or its folder is missing."""
    if not path.absolute().parent.is_dir():
        raise GraphError(f"There is no folder {path.absolute().parent} to write {path.name} into.")
    if path.is_dir():
        raise GraphError(f"{path} is a folder: name the file to write.")
    for each in (path, path.with_name(data_name(path))):
        if each.exists() and not force:
            raise GraphError(f"{each} exists. Name another file, or pass --force to replace it.")


def save(model: ir.Model, path: Path, progress: Callable[[int], object] = lambda size: None) -> None:
    """Writes `model` to `path`, and its weights, if they are large, to one file beside it. `progress` hears of every tensor's bytes.

    Both are made in a hidden folder beside `path` and moved in place at the end, the model last. One tensor at a time is in memory.
    Errors: GraphError where the disk is too small or the weights would replace the file that they are read from.
    """
    path = path.absolute()
    data = path.with_name(data_name(path))
    size = sum(tensor.nbytes for graph in model.graphs() for tensor in graph.initializers.tensors())
    for tensor in external_tensors(model):
        if data.exists() and data.samefile(tensor.path):
            raise GraphError(f"{data} holds the weights of the input: name another output file.")
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise GraphError(f"{path.name} needs {size >> 20} MB on disk, and {path.parent} has {free >> 20} MB left.")

    def written(tensor: ir.TensorProtocol, _: object) -> None:
        progress(tensor.nbytes)

    stage = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        external = data.name if size > EXTERNAL_FROM else None
        if external is None:
            ir.external_data.load_to_model(model)  # few bytes, whose file need not be where the new model is
        ir.save(
            model,
            stage / path.name,
            format="protobuf",
            external_data=external,
            size_threshold_bytes=TENSOR_EXTERNAL_FROM,
            callback=written,
            alignment=PAGE,
            align_threshold=ALIGNED_FROM,
        )
        path.unlink(missing_ok=True)  # from here on there is no model, until there is the whole new one
        data.unlink(missing_ok=True)
        if external:
            os.replace(stage / data.name, data)
        os.replace(stage / path.name, path)
    except OSError as error:
        raise GraphError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
