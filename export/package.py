"""The package folder: staged beside its place, whole or absent."""

from __future__ import annotations

import errno
import glob
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from PIL import Image

from export.component import Component
from export.exchange import exchange
from graph_passes.errors import GraphError
from graph_passes.passes.half import count_casts
from graph_passes.step import Step
from runtime.errors import CheckFailed, InputError
from runtime.manifest import NAME, ComponentEntry, FileEntry, HostEntry, Manifest, Port, files_below, sha256_of

CUSTOM_OPS_DOMAIN = "handheld"
RUNTIME_OPS_DOMAIN = "com.microsoft"  # ONNX Runtime's own, which not every provider has
# Graphs with more bytes of weights keep them in model.onnx_data: protobuf ends at 2 GB, and a file of its own can be mapped.
EXTERNAL_BYTES = 64 << 20
# Tensors below this stay in the graph, where passes and readers find them.
INLINE_TENSOR_BYTES = 1024
# Kernels read weights where the file is mapped: tensors that take time begin at a page, and so no vector of theirs crosses a cache line.
PAGE, ALIGNED_FROM = 4096, 64 << 10
# What the writers hold at most in memory, whatever the model's size.
IN_FLIGHT_BYTES = 256 << 20


@dataclass(frozen=True)
class Staging:
    """Two folders beside OUT: `package` becomes OUT at the end, `work` is scratch space that goes with the rest."""

    package: Path
    work: Path


@contextmanager
def staged(out: Path, force: bool = False) -> Iterator[Staging]:
    """A place to build a package in. It becomes `out` when the block ends well, and disappears when it does not.

    What an earlier, killed export left beside `out` is removed. Errors: InputError where `out` exists and `force` is not given, where its
    folder is none or cannot be written to, and where the disk is full.
    """
    _require_free(out, force)
    out = out.absolute()
    root = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        _make_parents(out)
        _remove_abandoned(out)
        staging = Staging(root / "package", root / "work")
        staging.package.mkdir(parents=True)
        staging.work.mkdir()
        yield staging
        _require_free(out, force)  # another export may have been faster
        if out.exists():
            exchange(staging.package, out)  # the old one goes with the rest
        else:
            staging.package.rename(out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(f"the disk of '{out.parent}' is full, and nothing was left there: free some space, or choose another "
                             "disk") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InputError(f"'{error.filename or out.parent}' cannot be used: {error.strerror}") from error
        raise
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _require_free(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise InputError(f"'{out}' exists: remove it, choose another folder, or give --force to replace it")
    if out.exists() and not (out.is_dir() and ((out / NAME).is_file() or not any(out.iterdir()))):
        raise InputError(f"'{out}' exists and is no package of this project: it will not be replaced")


def _make_parents(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"'{out.parent}' is no folder and cannot become one: choose another place for the package") from error


def _remove_abandoned(out: Path) -> None:
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        process = path.name.removesuffix(".partial").rpartition(".")[2]
        # in containers the next process often has the number of the last one
        gone = process == str(os.getpid()) or (Path("/proc").exists() and not Path(f"/proc/{process}").exists())
        if process.isdecimal() and gone:
            shutil.rmtree(path, ignore_errors=True)


def write_graph(folder: Path, component: str, model: ir.Model, name: str = "model", shared: bool = False) -> tuple[str, str]:
    """Writes `<component>/<name>.onnx`, with `<name>.onnx_data` where the weights are many or `shared` by graphs for other sizes; returns
    both names, "" for no data.

    Tensors are read, written and dropped one after the other. Errors: CheckFailed where ONNX's own checker refuses the graph, or a weight
    cannot be converted.
    """
    (folder / component).mkdir(exist_ok=True)
    try:
        return _written(folder, component, model, name, shared)
    except (GraphError, ir.serde.SerdeError) as error:
        cause: BaseException | None = error
        while isinstance(cause, ir.serde.SerdeError):
            cause = cause.__cause__
        if not isinstance(cause, GraphError):
            raise
        raise CheckFailed(f"'{component}': {cause}") from error


def _written(folder: Path, component: str, model: ir.Model, name: str, shared: bool) -> tuple[str, str]:
    file = f"{component}/{name}.onnx"
    sizes = [value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None]
    if sum(sizes) > EXTERNAL_BYTES or (shared and max(sizes, default=0) >= INLINE_TENSOR_BYTES):
        data = f"{component}/{name}.onnx_data"
        ir.save(model, folder / file, external_data=f"{name}.onnx_data", size_threshold_bytes=INLINE_TENSOR_BYTES, max_workers=2,
                max_in_flight_bytes=IN_FLIGHT_BYTES, alignment=PAGE, align_threshold=ALIGNED_FROM)
    else:
        data = ""
        ir.save(model, folder / file)
    check_graph(folder, component, file)
    return file, data


def check_graph(folder: Path, component: str, file: str) -> None:
    """Errors: CheckFailed where ONNX's own checker refuses the graph."""
    try:
        onnx.checker.check_model(folder / file)
    except onnx.checker.ValidationError as error:
        raise CheckFailed(f"'{component}' is not a valid ONNX graph: {str(error).splitlines()[0]}") from error


def write_component(folder: Path, component: Component, model: ir.Model, steps: list[Step], macs: int, host: ir.Model | None = None,
                    plan: dict[str, Any] | None = None, shared: bool = False) -> tuple[ComponentEntry, dict[str, FileEntry]]:
    """Writes a component's graph, the part of it that the host computes, and config.json; returns its entry in the manifest and its
    files, hashed while still in memory. Weights that are `shared` with graphs for other sizes get a file of their own."""
    file, data = write_graph(folder, component.name, model, shared=shared)
    config = f"{component.name}/config.json"  # optimum's loaders ask for it
    (folder / config).write_text(json.dumps(component.config, indent=2) + "\n", encoding="utf-8")
    files = {name: hashed(folder / name) for name in (file, data, config) if name}
    ops: dict[str, int] = {}
    for node in model.graph.all_nodes():
        if node.domain in (CUSTOM_OPS_DOMAIN, RUNTIME_OPS_DOMAIN):
            name = node.op_type if node.domain == CUSTOM_OPS_DOMAIN else f"{node.domain}.{node.op_type}"
            ops[name] = ops.get(name, 0) + 1
    passes = tuple(_entry(step) for step in steps)
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    inputs, outputs, hosted = ports_of(model.graph.inputs), ports_of(model.graph.outputs), None
    if host is not None:
        hosted, more = _write_host(folder, component.name, host, shared)
        files |= more
        inputs = outer_inputs(component, inputs, hosted)
    entry = ComponentEntry(file, files[file].sha256, inputs, outputs, model.graph.opset_imports[""], data=data,
                           parameters=component.parameters, weight_bytes=weights, casts=count_casts(model), macs=macs,
                           custom_ops=ops, passes=passes, plan=plan, host=hosted)
    return entry, files


def _write_host(folder: Path, component: str, host: ir.Model, shared: bool) -> tuple[HostEntry, dict[str, FileEntry]]:
    file, data = write_graph(folder, component, host, "host", shared)
    files = {name: hashed(folder / name) for name in (file, data) if name}
    return host_entry(file, files[file], host, data), files


def host_entry(file: str, written: FileEntry, host: ir.Model, data: str) -> HostEntry:
    """The manifest's entry of a written graph for the host."""
    return HostEntry(file, written.sha256, ports_of(host.graph.inputs), ports_of(host.graph.outputs), data)


def outer_inputs(component: Component, inputs: tuple[Port, ...], host: HostEntry) -> tuple[Port, ...]:
    """What a component takes from outside, in its own order: the host's inputs in place of those that the host gives."""
    known = {port.name: port for port in (*inputs, *host.inputs)}
    return tuple(known[name] for name in component.example_inputs if name in known)


def _entry(step: Step) -> dict[str, Any]:
    """What the manifest says of a pass: reasons only where there are some."""
    reasons = {"notes": list(step.notes), "refused": list(step.refused)}
    return {"name": step.name, "applied": step.applied, "seconds": step.seconds, **{key: texts for key, texts in reasons.items() if texts}}


def hashed(path: Path) -> FileEntry:
    """Hash and size of a file."""
    return FileEntry(sha256_of(path), path.stat().st_size)


def ports_of(values: Any) -> tuple[Port, ...]:
    """Inputs or outputs of a graph as the manifest names them."""
    ports = []
    for value in values:
        shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
        ports.append(Port(value.name, value.dtype.numpy().name, shape))
    return tuple(ports)


def copy_files(folder: Path, files: dict[str, Path]) -> None:
    """Copies what goes into the package as it is: {name in the package: file}."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def write_index(folder: Path, index: dict[str, Any], scheduler: dict[str, Any]) -> None:
    """model_index.json and the scheduler's config, as diffusers lays them out: what optimum opens a package by."""
    versions = {"_diffusers_version": importlib.metadata.version("diffusers"), "scheduler": ["diffusers", scheduler["_class_name"]]}
    index = dict(sorted({**index, **versions}.items()))
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n", encoding="utf-8")


def write_pictures(folder: Path, torch_picture: np.ndarray, onnx_picture: np.ndarray) -> None:
    """Both pictures of the trajectory, uint8 [H, W, 3], to `parity/`, where the report finds them."""
    (folder / "parity").mkdir(exist_ok=True)
    for name, picture in (("torch", torch_picture), ("onnx", onnx_picture)):
        Image.fromarray(picture).save(folder / "parity" / f"{name}.png")


def finish(folder: Path, manifest: Manifest, known: Mapping[str, FileEntry] | None = None) -> Manifest:
    """Hashes every file of the package into the manifest, writes it, and returns it. Those in `known` are not hashed again."""
    known = known or {}
    files = {name: known.get(name) or hashed(folder / name) for name in files_below(folder)}
    complete = replace(manifest, files=files)
    (folder / NAME).write_text(complete.to_json(), encoding="utf-8")
    return complete

